"""What the machine does at this moment. What it does not tell is absent, and nothing is guessed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bitnet.machine.cgroup import limits
from bitnet.machine.files import ROOT, number, text
from bitnet.machine.memory import memory
from bitnet.machine.processor import CPUS, allowed_cpus
from bitnet.machine.surroundings import chip_temperatures, zone_temperatures
from bitnet.monitor.power import Energy, charge, energies, watts

FRESH = 0.5  # seconds: a share of time, or watts from a counter, over less of them is mostly noise

# What the Raspberry Pi's firmware says of the present in its lowest bits, in hexadecimal
# (https://www.raspberrypi.com/documentation/computers/os.html#get_throttled): below "soc", or on the Pi 5 its address.
FIRMWARE = "sys/devices/platform/soc*/*firmware/get_throttled"
REASONS = ("under-voltage", "frequency-capped", "throttled", "soft-temperature-limit")


@dataclass(frozen=True, slots=True)
class Reading:
    """cpu: by core, the share of time that it worked. cpu_limit: processors' worth of time that are granted.

    Bytes, degrees Celsius, watts, hertz; battery: the share that is left. throttled: by reason, whether it holds.
    Memory is that of the control group where it limits it, otherwise that of the machine.
    """

    cpu: dict[int, float] = field(default_factory=dict)
    cpu_limit: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    resident: int | None = None
    temperature: dict[str, float] = field(default_factory=dict)
    power: dict[str, float] = field(default_factory=dict)
    frequency: dict[int, float] = field(default_factory=dict)
    battery: dict[str, float] = field(default_factory=dict)
    throttled: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counters:
    """cpu: by core, (seconds at work, seconds in all)."""

    time: float
    cpu: dict[int, tuple[float, float]]
    energy: dict[str, Energy]


class Sensors:
    """Shares of time and watts are means since the last reading. For several threads, and for any number of readers:
    a reading that is not half a second old is given again."""

    def __init__(
        self,
        root: Path = ROOT,
        allowed: Iterable[int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """root: where /proc and /sys are. allowed: CPUs in place of those that this process may run on."""
        self._root, self._clock, self._lock = root, clock, threading.Lock()
        self._allowed = None if allowed is None else set(allowed)
        self._before = self._count()
        self._reading: Reading | None = None

    def read(self) -> Reading:
        with self._lock:
            if self._reading is None or self._clock() - self._before.time >= FRESH:
                self._reading = self._read()
            return self._reading

    def _read(self) -> Reading:
        before, now, root = self._before, self._count(), self._root
        counted = now.time - before.time >= FRESH
        if counted:
            self._before = now
        used, total = memory_in_use(root)
        return Reading(
            cpu=cpu_shares(before.cpu, now.cpu) if counted else {},
            cpu_limit=limits(root).cpus,
            memory_used=used,
            memory_total=total,
            resident=psutil.Process().memory_info().rss,
            temperature=all_temperatures(root),
            power={**watts(root), **(mean_watts(before, now) if counted else {})},
            frequency=frequencies(root, now.cpu),
            battery=charge(root),
            throttled=throttled(root),
        )

    def _count(self) -> Counters:
        cpu = cpu_seconds(self._root)
        allowed = set(allowed_cpus(tuple(cpu))) if self._allowed is None else self._allowed
        return Counters(
            self._clock(), {core: times for core, times in cpu.items() if core in allowed}, energies(self._root)
        )


def cpu_seconds(root: Path = ROOT) -> dict[int, tuple[float, float]]:
    """By core, the time at work and in all, in units of any size: /proc/stat's ticks, or psutil's seconds."""
    found = {}
    for line in (text(root / "proc/stat") or "").splitlines():
        name, *values = line.split()
        if name.startswith("cpu") and name[3:].isdecimal():
            # user nice system idle iowait irq softirq steal; what follows is counted in user already (proc_stat(5)).
            ticks = [int(value) for value in values[:8]]
            found[int(name[3:])] = (float(sum(ticks) - sum(ticks[3:5])), float(sum(ticks)))
    if root == ROOT and not found:  # not Linux
        times = psutil.cpu_times(percpu=True)
        found = {core: (sum(each) - each.idle, sum(each)) for core, each in enumerate(times)}
    return found


def cpu_shares(before: dict[int, tuple[float, float]], now: dict[int, tuple[float, float]]) -> dict[int, float]:
    shares = {}
    for core, (busy, total) in now.items():
        was_busy, was_total = before.get(core, (busy, total))
        if total > was_total:
            shares[core] = min(1.0, max(0.0, (busy - was_busy) / (total - was_total)))  # iowait may run backwards
    return shares


def mean_watts(before: Counters, now: Counters) -> dict[str, float]:
    joules = {name: each.since(before.energy[name]) for name, each in now.energy.items() if name in before.energy}
    return {name: spent / (now.time - before.time) for name, spent in joules.items() if spent is not None}


def memory_in_use(root: Path = ROOT) -> tuple[int | None, int | None]:
    """(used, total) bytes, page cache not counted."""
    machine, group = memory(root), limits(root)
    if group.memory is not None and (machine.total is None or group.memory < machine.total):
        return group.memory - (group.memory_free or 0), group.memory
    used = machine.total - machine.available if machine.total and machine.available is not None else None
    return used, machine.total


def all_temperatures(root: Path = ROOT) -> dict[str, float]:
    """Those of the chips, and of the zones that are no chips too. Several of one name are numbered."""
    chips = chip_temperatures(root)
    # Linux makes a chip of most zones, with "_" for "-" in its name.
    known = {each.sensor.replace("-", "_") for each in chips}
    zones = [each for each in zone_temperatures(root) if each.sensor.replace("-", "_") not in known]
    found: dict[str, float] = {}
    for each in (*chips, *zones):
        name, count = each.sensor, 1
        while name in found:
            count += 1
            name = f"{each.sensor} {count}"
        found[name] = each.now
    return found


def frequencies(root: Path, cores: Iterable[int]) -> dict[int, float]:
    """Hertz: what cpufreq says, or else x86's cpuinfo."""
    said = {core: number(root / CPUS / f"cpu{core}/cpufreq/scaling_cur_freq") for core in cores}
    return {core: khz * 1e3 for core, khz in said.items() if khz} or {
        core: hertz for core, hertz in cpuinfo_frequencies(root).items() if core in said
    }


def cpuinfo_frequencies(root: Path) -> dict[int, float]:
    found, core = {}, -1
    for line in (text(root / "proc/cpuinfo") or "").splitlines():
        name, _, value = (word.strip() for word in line.partition(":"))
        with suppress(ValueError):
            if name == "processor":
                core = int(value)
            elif name == "cpu MHz":
                found[core] = float(value) * 1e6
    return found


def throttled(root: Path = ROOT) -> dict[str, bool]:
    """Empty where nothing tells, which is anywhere but on a Raspberry Pi."""
    try:
        bits = int(text(next(root.glob(FIRMWARE))) or "", 16)
    except (StopIteration, ValueError):
        return {}
    return {reason: bool(bits >> bit & 1) for bit, reason in enumerate(REASONS)}
