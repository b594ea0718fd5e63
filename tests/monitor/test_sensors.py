"""What the machine tells is read, over its own time; what it does not tell is absent."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from machine_files import CPU, Write, laptop

from bitnet.monitor.sensors import Sensors, cpu_seconds, memory_in_use

RAPL, HWMON, SUPPLY = "sys/class/powercap/intel-rapl:", "sys/class/hwmon/hwmon", "sys/class/power_supply/"
STAT = "cpu  9 9 9 9\ncpu0 {} 0 0 {} 0 0 0 0 0 0\ncpu1 0 0 100 100 100 0 0 0 0 0\nintr 1 2 3"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def readings(root: Path, clock: Clock, cores: int = 2) -> Sensors:
    return Sensors(root, allowed=range(cores), clock=clock)


def test_an_empty_machine_tells_nothing(write: Write) -> None:
    found = readings(write({}), Clock()).read()
    assert (found.cpu, found.temperature, found.power, found.frequency) == ({}, {}, {}, {})
    assert (found.battery, found.throttled) == ({}, {})
    assert found.cpu_limit is found.memory_used is found.memory_total is None


def test_a_core_is_busy_for_the_share_of_its_time_since_the_last_reading(write: Write) -> None:
    clock = Clock()
    sensors = readings(write({"proc/stat": STAT.format(1000, 5000)}), clock)
    write({"proc/stat": STAT.format(1030, 5070)})
    clock.now = 1.0
    assert sensors.read().cpu == {0: pytest.approx(0.3)}  # the time of core 1 has not moved
    write({"proc/stat": STAT.format(1130, 5070)})
    clock.now = 2.0
    assert sensors.read().cpu == {0: pytest.approx(1.0)}


def test_a_reading_that_has_just_been_made_is_given_again(write: Write) -> None:
    clock = Clock()
    sensors = readings(write({"proc/stat": STAT.format(0, 0)}), clock)
    assert sensors.read().cpu == {}  # no time has passed
    write({"proc/stat": STAT.format(50, 50)})
    clock.now = 1.0
    first = sensors.read()
    write({"proc/stat": STAT.format(60, 50)})
    clock.now = 1.1
    assert sensors.read() is first


def test_cores_that_this_process_may_not_use_are_left_out(write: Write) -> None:
    clock = Clock()
    sensors = Sensors(write({"proc/stat": "cpu0 1 0 0 1\ncpu7 1 0 0 1"}), allowed=[7], clock=clock)
    write({"proc/stat": "cpu0 2 0 0 2\ncpu7 2 0 0 4"})
    clock.now = 1.0
    assert sensors.read().cpu == {7: pytest.approx(0.25)}


def test_this_machine_counts_as_psutil_does() -> None:
    ours, theirs = cpu_seconds(), psutil.cpu_times(percpu=True)
    assert len(ours) == len(theirs) == psutil.cpu_count()
    hertz = 100  # USER_HZ, on every Linux of today
    for (busy, total), times in zip(ours.values(), theirs, strict=True):
        assert busy / hertz == pytest.approx(sum(times[:8]) - times.idle - times.iowait, abs=2)
        assert total / hertz == pytest.approx(sum(times[:8]), abs=2)


def test_this_machine_is_read() -> None:
    sensors = Sensors()
    deadline = time.monotonic() + 60
    while not sensors.read().cpu and time.monotonic() < deadline:
        time.sleep(0.1)
    found = sensors.read()
    assert found.cpu.keys() <= set(range(psutil.cpu_count() or 0)) and found.cpu
    assert all(0 <= share <= 1 for share in found.cpu.values())
    assert found.memory_total is not None and 0 < found.memory_total <= psutil.virtual_memory().total
    assert found.memory_used is not None and 0 < found.memory_used < found.memory_total


def test_memory_is_that_of_the_group_where_it_limits(write: Write) -> None:
    root = write(laptop())
    assert memory_in_use(root) == (7000000 * 1024, 16000000 * 1024)
    group = "sys/fs/cgroup/user.slice"
    write({f"{group}/memory.max": 4096000, f"{group}/memory.current": 3000000, f"{group}/cpu.max": "150000 100000"})
    write({f"{group}/memory.stat": "anon 5\ninactive_file 1000000"})
    assert memory_in_use(root) == (2000000, 4096000)
    assert readings(root, Clock()).read().cpu_limit == 1.5


def test_rapl_counters_are_watts_over_their_time_and_may_wrap(write: Write) -> None:
    files: dict[str, object] = {
        f"{RAPL}0/name": "package-0", f"{RAPL}0/energy_uj": 9_000_000, f"{RAPL}0/max_energy_range_uj": 10_000_000,
        f"{RAPL}0:0/name": "core", f"{RAPL}0:0/energy_uj": 1_000_000, f"{RAPL}0:0/max_energy_range_uj": 10_000_000,
        f"{RAPL}1/name": "psys",  # and its counter is for root alone
        "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
        "sys/class/powercap/intel-rapl-mmio:0/energy_uj": 1,
    }  # fmt: skip
    clock = Clock()
    sensors = readings(write(files), clock)
    assert sensors.read().power == {}  # one count says nothing
    write({f"{RAPL}0/energy_uj": 3_000_000, f"{RAPL}0:0/energy_uj": 2_500_000})
    clock.now = 2.0
    assert sensors.read().power == {"package-0": pytest.approx(2.0), "package-0/core": pytest.approx(0.75)}


def test_a_counter_that_was_set_back_tells_nothing_until_it_is_read_again(write: Write) -> None:
    name, clock = f"{HWMON}0/energy1_input", Clock()
    sensors = readings(write({f"{HWMON}0/name": "amd_energy", name: 5_000_000}), clock)
    write({name: 1_000_000})
    clock.now = 1.0
    assert sensors.read().power == {}
    write({name: 3_000_000})
    clock.now = 2.0
    assert sensors.read().power == {"amd_energy": pytest.approx(2.0)}


def test_chips_tell_power_themselves(write: Write) -> None:
    root = write(
        {
            f"{HWMON}0/name": "ina3221", f"{HWMON}0/power1_input": 4_500_000, f"{HWMON}0/power1_label": "VDD_IN",
            f"{HWMON}1/name": "amdgpu", f"{HWMON}1/power1_average": 15_000_000, f"{HWMON}1/power1_input": 1,
            f"{HWMON}2/name": "mute", f"{HWMON}2/power1_input": "",
        }
    )  # fmt: skip
    assert readings(root, Clock()).read().power == pytest.approx({"ina3221 VDD_IN": 4.5, "amdgpu": 15.0})


@pytest.mark.parametrize(
    "files, watts",
    [
        ({"status": "Discharging", "power_now": 8_000_000}, 8.0),
        ({"status": "Discharging", "current_now": -2_000_000, "voltage_now": 12_000_000}, 24.0),
        ({"status": "Charging", "power_now": 30_000_000}, None),
        ({"status": "Discharging", "current_now": 2_000_000}, None),
    ],
)
def test_a_battery_tells_power_while_it_is_drained(write: Write, files: dict[str, object], watts: float | None) -> None:
    battery = {"type": "Battery", "capacity": 63, **files}
    root = write({f"{SUPPLY}BAT0/{name}": value for name, value in battery.items()})
    write({f"{SUPPLY}mouse/{name}": value for name, value in {**battery, "scope": "Device"}.items()})
    write({f"{SUPPLY}AC/type": "Mains"})
    found = readings(root, Clock()).read()
    assert found.power == ({} if watts is None else {"BAT0": pytest.approx(watts)})
    assert found.battery == {"BAT0": 0.63}


def test_temperatures_of_chips_and_of_the_zones_beside_them(write: Write) -> None:
    zone = "sys/class/thermal/thermal_zone"
    root = write(
        {
            f"{HWMON}0/name": "cpu_thermal", f"{HWMON}0/temp1_input": 51200,
            f"{HWMON}1/name": "nvme", f"{HWMON}1/temp1_input": 40000,
            f"{HWMON}2/name": "nvme", f"{HWMON}2/temp1_input": 42000,
            f"{zone}0/type": "cpu-thermal", f"{zone}0/temp": 51200,
            f"{zone}1/type": "gpu-thermal", f"{zone}1/temp": 48500,
        }
    )  # fmt: skip
    expected = {"cpu_thermal": 51.2, "nvme": 40.0, "nvme 2": 42.0, "gpu-thermal": 48.5}
    assert readings(root, Clock()).read().temperature == expected


def test_frequencies_of_cpufreq_or_else_of_cpuinfo(write: Write) -> None:
    root = write({**laptop(2), "proc/stat": STAT.format(1, 1)})
    assert readings(root, Clock()).read().frequency == {0: 800e6, 1: 801e6}
    for cpu in range(2):
        (root / CPU / f"cpu{cpu}/cpufreq/scaling_cur_freq").unlink()
    write({"proc/cpuinfo": "processor\t: 0\ncpu MHz\t: 2596.5\n\nprocessor\t: 1\ncpu MHz\t: odd\n"})
    assert readings(root, Clock()).read().frequency == {0: 2596.5e6}


@pytest.mark.parametrize("firmware", ["soc/soc:firmware", "soc@107c000000/soc@107c000000:firmware"])
def test_a_raspberry_pi_tells_what_it_can_and_why_it_is_slow(write: Write, firmware: str) -> None:
    """No vcgencmd, no energy counters: its files are all there is."""
    throttling, hwmon = f"sys/devices/platform/{firmware}/get_throttled", "sys/class/hwmon/hwmon"
    files: dict[str, object] = {
        throttling: "50005",
        "proc/meminfo": "MemTotal: 3884000 kB\nMemAvailable: 2884000 kB",
        "proc/stat": STAT.format(1, 1),
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "62322",
        f"{hwmon}0/name": "cpu_thermal",
        f"{hwmon}0/temp1_input": "62322",
        f"{hwmon}1/name": "rpi_volt",
        f"{hwmon}1/in0_lcrit_alarm": "1",
        **{f"{CPU}/cpu{core}/cpufreq/scaling_cur_freq": 600000 for core in range(2)},
    }
    found = readings(write(files), Clock()).read()
    assert found.throttled == {
        "under-voltage": True, "frequency-capped": False, "throttled": True, "soft-temperature-limit": False
    }  # fmt: skip
    assert found.temperature == {"cpu_thermal": 62.322} and found.frequency == {0: 600e6, 1: 600e6}
    assert found.memory_used == 1_000_000 * 1024 and found.power == found.battery == {}
    assert readings(write({throttling: "0"}), Clock()).read().throttled == dict.fromkeys(found.throttled, False)
    assert readings(write({throttling: "odd"}), Clock()).read().throttled == {}


def test_energy_that_only_root_may_read_is_not_told(write: Write) -> None:
    """As Linux has it since CVE-2020-8694; here the file cannot be read either."""
    root = write({f"{RAPL}0/name": "package-0", f"{RAPL}0/max_energy_range_uj": 10_000_000})
    (root / f"{RAPL}0/energy_uj").mkdir()
    clock = Clock()
    sensors = readings(root, clock)
    clock.now = 2.0
    assert sensors.read().power == {}
