"""The processors: what they are, how they share cores, caches and memory, and how fast and hot they run."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bitnet.machine.files import ROOT, fields, id_list, number, numbered, text

CPUS, NODES = "sys/devices/system/cpu", "sys/devices/system/node"


@dataclass(frozen=True, slots=True)
class Cache:
    """Of one core. kind: "data", "instruction" or "unified". shared_by: logical CPUs that use the same one."""

    level: int
    kind: str
    nbytes: int
    shared_by: int


@dataclass(frozen=True, slots=True)
class Node:
    """Of memory and the CPUs next to it. memory: bytes."""

    id: int
    cpus: tuple[int, ...]
    memory: int | None


@dataclass(frozen=True, slots=True)
class Frequency:
    """MHz, of the fastest CPU. now: at this moment; limit: what the system allows; most: what the hardware can.

    governor: the policy of all CPUs, several joined by commas. throttled: times that heat has slowed a core down.
    """

    now: int | None = None
    limit: int | None = None
    most: int | None = None
    governor: str | None = None
    throttled: int | None = None


@dataclass(frozen=True, slots=True)
class Processor:
    """allowed: logical CPUs that this process may run on; allowed_cores: how many physical cores these belong to."""

    model: str | None
    architecture: str
    logical: int | None
    cores: int | None
    allowed: tuple[int, ...]
    allowed_cores: int | None
    caches: tuple[Cache, ...]
    nodes: tuple[Node, ...]
    frequency: Frequency


def processor(root: Path = ROOT, allowed: Iterable[int] | None = None) -> Processor:
    """allowed: in place of the CPUs that the system allows this process."""
    online = id_list(text(root / CPUS / "online")) or tuple(cpu for cpu, _ in numbered(root / CPUS, "cpu"))
    usable = tuple(sorted(allowed_cpus(online) if allowed is None else allowed))
    cores = count_cores(root, online)
    if root == ROOT and cores is None:  # not Linux, or a Linux without sysfs
        import psutil

        online, cores = online or tuple(range(psutil.cpu_count() or 0)), psutil.cpu_count(logical=False)
        usable = usable or online
    return Processor(
        model=model_name(root),
        architecture=platform.machine(),
        logical=len(online) or None,
        cores=cores,
        allowed=usable,
        allowed_cores=count_cores(root, usable),
        caches=caches(root, usable),
        nodes=nodes(root),
        frequency=frequency(root, usable),
    )


def allowed_cpus(online: tuple[int, ...]) -> Iterable[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else online


def count_cores(root: Path, cpus: Iterable[int]) -> int | None:
    """How many physical cores these logical CPUs belong to; None where the system does not tell of every one."""
    topology = [root / CPUS / f"cpu{cpu}" / "topology" for cpu in cpus]
    siblings = [text(each / "core_cpus_list") or text(each / "thread_siblings_list") for each in topology]
    return len(set(siblings)) if siblings and None not in siblings else None


def model_name(root: Path = ROOT) -> str | None:
    found = fields(root / "proc/cpuinfo")
    named = found.get("model name") or found.get("Hardware") or found.get("cpu model")
    device = text(root / "proc/device-tree/model") or text(root / "sys/firmware/devicetree/base/model")
    return named or device or (sysctl("machdep.cpu.brand_string") if root == ROOT else None)


def sysctl(name: str) -> str | None:
    """What macOS says."""
    if sys.platform != "darwin":
        return None
    import subprocess

    try:
        asked = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return asked.stdout.strip() or None


def caches(root: Path, cpus: tuple[int, ...]) -> tuple[Cache, ...]:
    """Those of the first allowed CPU, nearest first."""
    found = []
    for _, folder in numbered(root / CPUS / f"cpu{cpus[0] if cpus else 0}" / "cache", "index"):
        level, nbytes = number(folder / "level"), size(text(folder / "size"))
        if level is not None and nbytes is not None:
            kind = (text(folder / "type") or "unified").lower()
            found.append(Cache(level, kind, nbytes, len(id_list(text(folder / "shared_cpu_list"))) or 1))
    return tuple(found)


def size(given: str | None) -> int | None:
    """ "1024K" as bytes."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    digits = (given or "").rstrip("KMG")
    return int(digits) * units.get((given or "")[-1], 1) if digits.isdecimal() else None


def nodes(root: Path = ROOT) -> tuple[Node, ...]:
    found = []
    for id, folder in numbered(root / NODES, "node"):
        total = fields(folder / "meminfo").get(f"Node {id} MemTotal", "").split()
        memory = int(total[0]) * 1024 if total and total[0].isdecimal() else None
        found.append(Node(id, id_list(text(folder / "cpulist")), memory))
    return tuple(found)


def frequency(root: Path, cpus: tuple[int, ...]) -> Frequency:
    folders = [root / CPUS / f"cpu{cpu}" for cpu in cpus]

    def fastest(name: str) -> int | None:
        return max((khz // 1000 for each in folders if (khz := number(each / "cpufreq" / name))), default=None)

    governors = {governor for each in folders if (governor := text(each / "cpufreq/scaling_governor"))}
    events = [n for each in folders if (n := number(each / "thermal_throttle/core_throttle_count")) is not None]
    return Frequency(
        now=fastest("scaling_cur_freq") or clock(root),
        limit=fastest("scaling_max_freq"),
        most=fastest("cpuinfo_max_freq"),
        governor=", ".join(sorted(governors)) or None,
        throttled=sum(events) if events else None,
    )


def clock(root: Path) -> int | None:
    """What x86's cpuinfo says of the first CPU."""
    try:
        return round(float(fields(root / "proc/cpuinfo").get("cpu MHz", "")))
    except ValueError:
        return None
