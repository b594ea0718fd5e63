"""What control groups grant this process, both versions. A limit anywhere on the way up to the root holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bitnet.machine.files import ROOT, number, text

UNLIMITED = 1 << 62  # version 1 writes a number near 2^63 where there is no limit


@dataclass(frozen=True, slots=True)
class Limits:
    """cpus: processors' worth of time. memory: bytes; memory_free: what is left of them, page cache given back.

    None: no limit.
    """

    cpus: float | None = None
    memory: int | None = None
    memory_free: int | None = None


def limits(root: Path = ROOT) -> Limits:
    quotas = [quota for folder in groups(root, "cpu") if (quota := cpu_quota(folder)) is not None]
    memory = [found for folder in groups(root, "memory") if (found := memory_limit(folder)) is not None]
    return Limits(
        min(quotas, default=None),
        min((limit for limit, _ in memory), default=None),
        min((free for _, free in memory), default=None),
    )


def groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of all groups above it, in both hierarchies."""
    base, paths = root / "sys/fs/cgroup", {"": PurePosixPath("/"), controller: PurePosixPath("/")}
    mounts = {"": [base, base / "unified"], controller: [base / controller]}
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        key = controller if controller in names.split(",") else names  # version 2 names no controller
        if key in paths and ".." not in path:  # ".." where the group lies outside of what a container sees
            paths[key] = PurePosixPath("/") / path
            mounts[key].append(base / names)  # "cpu,cpuacct"
    for key, group in paths.items():
        for mount in dict.fromkeys(mounts[key]):
            yield from (mount / each.relative_to("/") for each in (group, *group.parents))


def cpu_quota(folder: Path) -> float | None:
    words = (text(folder / "cpu.max") or "").split()
    if len(words) != 2:
        words = [text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = map(int, words)
    except ValueError:  # "max"
        return None
    return quota / period if quota > 0 and period > 0 else None


def memory_limit(folder: Path) -> tuple[int, int] | None:
    """A group's limit and what is free under it."""
    for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        allowed, used = number(folder / limit), number(folder / usage)
        if allowed is None or allowed >= UNLIMITED:
            continue
        words = (text(folder / "memory.stat") or "").split()
        stat = dict(zip(words[::2], words[1::2], strict=False))
        cache = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
        return allowed, max(0, min(allowed, allowed - (used or 0) + cache))
    return None
