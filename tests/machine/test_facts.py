"""What is read from the kernel's files, and that what is missing stays unknown."""

from __future__ import annotations

import json
from dataclasses import asdict

import psutil
import pytest
from machine_files import CPU, Write, laptop

from bitnet.machine import look
from bitnet.machine.cgroup import Limits, limits
from bitnet.machine.files import id_list
from bitnet.machine.memory import available_bytes
from bitnet.machine.processor import Cache, Frequency, Node
from bitnet.machine.surroundings import Temperature


def test_nothing_is_known_of_an_empty_machine(write: Write) -> None:
    found = look(write({}), allowed=())
    assert (found.processor.model, found.processor.logical, found.processor.cores) == (None, None, None)
    assert found.processor.frequency == Frequency() and found.limits == Limits()
    assert found.memory.total is found.memory.available is found.available is None
    assert (found.processor.caches, found.processor.nodes, found.temperatures) == ((), (), ())
    assert (found.surroundings.container, found.surroundings.hypervisor, found.surroundings.emulator) == (None,) * 3


def test_this_machine_is_found_as_psutil_finds_it() -> None:
    found = look()
    assert found.processor.logical == psutil.cpu_count()
    assert found.processor.cores == psutil.cpu_count(logical=False)
    assert found.memory.total == psutil.virtual_memory().total
    assert len(found.processor.allowed) >= 1
    json.dumps(asdict(found))


def test_threads_that_share_a_core_are_told_apart_from_cores(write: Write) -> None:
    found = look(write(laptop(8)), allowed=[0, 1, 4]).processor
    assert (found.logical, found.cores, found.allowed, found.allowed_cores) == (8, 4, (0, 1, 4), 2)
    assert found.model == "Fast CPU @ 3.00GHz"


def test_cores_are_unknown_where_one_cpu_does_not_tell(write: Write) -> None:
    root = write(laptop(8))
    (root / CPU / "cpu1/topology/core_cpus_list").unlink()
    assert look(root, allowed=[0, 4]).processor.cores is None
    assert look(root, allowed=[0, 4]).processor.allowed_cores == 1


def test_older_kernels_call_them_thread_siblings(write: Write) -> None:
    root = write({f"{CPU}/cpu{i}/topology/thread_siblings_list": i // 2 for i in range(4)})
    assert look(root, allowed=range(4)).processor.cores == 2


def test_frequencies_are_those_of_the_fastest_allowed_cpu(write: Write) -> None:
    found = look(write(laptop(8)), allowed=[1, 2]).processor.frequency
    assert found == Frequency(now=802, limit=2000, most=4000, governor="powersave", throttled=1)


def test_without_cpufreq_the_frequency_is_cpuinfos(write: Write) -> None:
    assert look(write({"proc/cpuinfo": "cpu MHz\t\t: 2596.133"}), allowed=[0]).processor.frequency.now == 2596


def test_caches_and_nodes(write: Write) -> None:
    index, node = f"{CPU}/cpu2/cache/index", "sys/devices/system/node/node"
    root = write(
        {
            f"{index}0/level": 1, f"{index}0/type": "Data", f"{index}0/size": "48K", f"{index}0/shared_cpu_list": "2",
            f"{index}3/level": 3, f"{index}3/type": "Unified", f"{index}3/size": "32M",
            f"{index}3/shared_cpu_list": "0-3,8-11",
            f"{index}4/level": 4, f"{index}4/size": "unreadable",
            f"{node}0/cpulist": "0-3", f"{node}0/meminfo": "Node 0 MemTotal:  1000 kB\nNode 0 MemFree: 5 kB",
            f"{node}10/cpulist": "", f"{node}2/cpulist": "8-11",
        }
    )  # fmt: skip
    found = look(root, allowed=[2, 3]).processor
    assert found.caches == (Cache(1, "data", 48 << 10, 1), Cache(3, "unified", 32 << 20, 8))
    assert found.nodes == (Node(0, (0, 1, 2, 3), 1024000), Node(2, (8, 9, 10, 11), None), Node(10, (), None))


@pytest.mark.parametrize(
    "given, ids", [("0-2,8", (0, 1, 2, 8)), ("7", (7,)), ("", ()), (None, ()), ("3-", ()), ("x,1, 4-5", (1, 4, 5))]
)
def test_lists_of_ids(given: str | None, ids: tuple[int, ...]) -> None:
    assert id_list(given) == ids


V2 = "sys/fs/cgroup"


@pytest.mark.parametrize(
    "files, cpus",
    [
        ({f"{V2}/cpu.max": "150000 100000"}, 1.5),
        ({f"{V2}/cpu.max": "max 100000"}, None),
        ({f"{V2}/cpu.max": "nonsense"}, None),
        ({f"{V2}/user.slice/cpu.max": "50000 100000", f"{V2}/user.slice/app.scope/cpu.max": "300000 100000"}, 0.5),
        ({f"{V2}/user.slice/cpu.max": "max 100000", f"{V2}/user.slice/app.scope/cpu.max": "300000 100000"}, 3),
        ({f"{V2}/unified/user.slice/cpu.max": "200000 100000"}, 2),
        ({f"{V2}/another.slice/cpu.max": "1000 100000"}, None),
    ],
)
def test_the_smallest_quota_on_the_way_to_the_root_holds(
    write: Write, files: dict[str, object], cpus: float | None
) -> None:
    assert limits(write({"proc/self/cgroup": "0::/user.slice/app.scope", **files})).cpus == cpus


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("folder, cpus", [("", 2.5), ("docker/", 2.5), ("docker/abc/", 2.5), ("docker/xyz/", None)])
def test_quotas_of_version_1(write: Write, mount: str, folder: str, cpus: float | None) -> None:
    here = f"{V2}/{mount}/{folder}"
    files = {f"{here}cpu.cfs_quota_us": 250000, f"{here}cpu.cfs_period_us": 100000}
    group = f"5:{mount}:/docker/abc\n4:memory:/elsewhere\n0::/"
    assert limits(write({"proc/self/cgroup": group, **files})).cpus == cpus


def test_no_quota_is_minus_one_in_version_1(write: Write) -> None:
    files = {f"{V2}/cpu/cpu.cfs_quota_us": -1, f"{V2}/cpu/cpu.cfs_period_us": 100000}
    assert limits(write(files)).cpus is None


def test_a_group_outside_of_the_containers_view_is_not_looked_for(write: Write) -> None:
    files = {"proc/self/cgroup": "0::/../../other", f"{V2}/cpu.max": "100000 100000"}
    assert limits(write({**files, "sys/fs/other/cpu.max": "1 100000"})).cpus == 1


@pytest.mark.parametrize(
    "limit, usage, folder",
    [
        ("memory.max", "memory.current", ""),
        ("memory.max", "memory.current", "a/"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory/"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory/a/b/"),
    ],
)
def test_a_control_group_limits_memory_and_gives_its_page_cache_back(
    write: Write, limit: str, usage: str, folder: str
) -> None:
    here = f"{V2}/{folder}"
    root = write(
        {
            "proc/self/cgroup": "4:memory:/a/b\n0::/a/b",
            f"{here}{limit}": 1000000,
            f"{here}{usage}": 900000,
            f"{here}memory.stat": "anon 5\ninactive_file 300000",
            "proc/meminfo": "MemAvailable: 9000000 kB",
        }
    )
    assert limits(root) == Limits(memory=1000000, memory_free=400000)
    assert available_bytes(root) == 400000


def test_the_tightest_of_nested_groups_is_not_always_the_smallest(write: Write) -> None:
    outer, inner = f"{V2}/a", f"{V2}/a/b"
    root = write(
        {
            "proc/self/cgroup": "0::/a/b",
            f"{outer}/memory.max": 1000, f"{outer}/memory.current": 950,
            f"{inner}/memory.max": 500, f"{inner}/memory.current": 100,
        }
    )  # fmt: skip
    assert limits(root) == Limits(memory=500, memory_free=50)


@pytest.mark.parametrize("unlimited", ["max", 9223372036854771712])
def test_no_limit_of_memory_is_none(write: Write, unlimited: object) -> None:
    name = "memory.max" if unlimited == "max" else "memory/memory.limit_in_bytes"
    assert limits(write({f"{V2}/{name}": unlimited, f"{V2}/memory.current": 5})) == Limits()


def test_memory_swap_and_huge_pages(write: Write) -> None:
    found = look(write(laptop()), allowed=[0])
    memory = found.memory
    assert (memory.total, memory.available, memory.swap_total, memory.swap_used) == (
        16000000 << 10, 9000000 << 10, 2000000 << 10, 500000 << 10
    )  # fmt: skip
    assert memory.huge_pages == "never" and found.available == 9000000 << 10


def test_temperatures_of_chips_or_else_of_zones(write: Write) -> None:
    zone, chip = "sys/class/thermal/thermal_zone0", "sys/class/hwmon/hwmon1"
    root = write(
        {
            f"{zone}/type": "x86_pkg", f"{zone}/temp": 45000,
            f"{zone}/trip_point_0_type": "passive", f"{zone}/trip_point_0_temp": 90000,
            f"{zone}/trip_point_1_type": "critical", f"{zone}/trip_point_1_temp": 105000,
        }
    )  # fmt: skip
    assert look(root, allowed=[0]).temperatures == (Temperature("x86_pkg", 45, 105),)
    write({f"{chip}/name": "k10temp", f"{chip}/temp1_input": 61250, f"{chip}/temp1_label": "Tctl"})
    assert look(root, allowed=[0]).temperatures == (Temperature("k10temp Tctl", 61.25, None),)


@pytest.mark.parametrize(
    "files, container, hypervisor",
    [
        ({".dockerenv": ""}, "docker", None),
        ({"run/.containerenv": ""}, "podman", None),
        ({"run/systemd/container": "systemd-nspawn"}, "systemd-nspawn", None),
        ({"proc/self/cgroup": "0::/kubepods/besteffort/pod1"}, "kubepods", None),
        ({"proc/sys/kernel/osrelease": "5.15.0-microsoft-standard-WSL2"}, None, "wsl"),
        ({"sys/class/dmi/id/product_name": "KVM Virtual Machine"}, None, "kvm"),
        ({"sys/class/dmi/id/product_name": "ThinkPad X1"}, None, None),
        ({"proc/cpuinfo": "flags : fpu hypervisor"}, None, "unknown"),
    ],
)
def test_containers_and_virtual_machines(
    write: Write, files: dict[str, object], container: str | None, hypervisor: str | None
) -> None:
    found = look(write(files), allowed=[0]).surroundings
    assert (found.container, found.hypervisor, found.emulator) == (container, hypervisor, None)


def test_emulation_shows_in_the_model_or_in_the_registered_emulator(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    root = write({"proc/sys/fs/binfmt_misc/qemu-x86_64": "enabled"})
    assert look(root, allowed=[0]).surroundings.emulator is None
    write({"proc/sys/fs/binfmt_misc/qemu-aarch64": "enabled"})
    assert look(root, allowed=[0]).surroundings.emulator == "qemu"


def test_a_file_of_garbage_is_no_answer(write: Write) -> None:
    root = write(laptop())
    for name in (f"{CPU}/online", f"{CPU}/cpu0/cpufreq/scaling_cur_freq", "proc/meminfo", "proc/self/cgroup"):
        (root / name).write_bytes(b"\xff\x00:\xfe\n:::\n")
    found = look(root, allowed=[0])
    assert found.memory.total is None and found.limits == Limits() and found.processor.logical == 8
