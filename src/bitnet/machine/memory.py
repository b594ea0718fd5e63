"""Memory: how much there is, how much of it this process can still have, and on which pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bitnet.machine.cgroup import limits
from bitnet.machine.files import ROOT, fields, text

HUGE_PAGES = "sys/kernel/mm/transparent_hugepage/enabled"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. available: without swapping, whatever the control groups say.

    huge_pages: "always", "madvise" (for those who ask, as bitnet does) or "never".
    """

    total: int | None
    available: int | None
    swap_total: int | None
    swap_used: int | None
    huge_pages: str | None


def memory(root: Path = ROOT) -> Memory:
    found = fields(root / "proc/meminfo")

    def nbytes(name: str) -> int | None:
        words = found.get(name, "").split()
        return int(words[0]) * 1024 if words and words[0].isdecimal() else None

    total, available, swap, swap_free = map(nbytes, ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree"))
    swap_used = swap - swap_free if swap is not None and swap_free is not None else None
    if root == ROOT and (total is None or available is None):  # not Linux
        import psutil

        virtual, swapping = psutil.virtual_memory(), psutil.swap_memory()
        total, available = int(virtual.total), int(virtual.available)
        swap, swap_used = int(swapping.total), int(swapping.used)
    return Memory(total, available, swap, swap_used, huge_pages(root))


def huge_pages(root: Path) -> str | None:
    chosen = re.search(r"\[(\w+)\]", text(root / HUGE_PAGES) or "")
    return chosen[1] if chosen else None


def available_bytes(root: Path = ROOT) -> int | None:
    """Memory that can be had without swapping, within the limits of all control groups; None where nothing tells."""
    return min((each for each in (memory(root).available, limits(root).memory_free) if each is not None), default=None)
