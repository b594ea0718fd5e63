"""Under which conditions a number was measured: the build, what else the machine did, how much memory it took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

import bitnet

BUSY, STOLEN = 0.05, 0.02  # shares of the processors' time from which on a warning is due
DRIFT = 0.1  # and by how much the bandwidth may change in a run


def build() -> str:
    """The version, with the commit where the package runs from a checkout: "0.1.0+g1a2b3c4"."""
    checkout = Path(bitnet.__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return bitnet.__version__
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return bitnet.__version__
    return f"{bitnet.__version__}+g{found.stdout.strip()}" if found.returncode == 0 else bitnet.__version__


class Disturbance:
    """What share of the processors' time others took since this was made: other processes, and the hypervisor."""

    def __init__(self) -> None:
        self._start = self._now()

    def shares(self) -> tuple[float, float]:
        """(other processes, stolen), of all the time that all processors had."""
        others, stolen, total = (end - start for end, start in zip(self._now(), self._start, strict=True))
        return (max(0.0, others / total), stolen / total) if total > 0 else (0.0, 0.0)

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds of other processes, stolen seconds, and seconds in all, since the machine was started."""
        times = psutil.cpu_times()
        busy = sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
        stolen = getattr(times, "steal", 0.0)
        own = psutil.Process()
        used = 0.0
        for process in (own, *own.children(recursive=True)):
            with suppress(psutil.Error):  # it may just have ended
                spent = process.cpu_times()
                used += spent.user + spent.system
        return busy - used, stolen, time.monotonic() * (os.cpu_count() or 1)


def warnings(disturbance: tuple[float, float], bandwidth: dict[int, list[float]]) -> list[str]:
    """What makes the numbers of a run less than certain, a sentence each."""
    others, stolen = disturbance
    found = []
    if others > BUSY:
        found.append(f"other processes took {100 * others:.0f} % of the processors' time")
    if stolen > STOLEN:
        found.append(f"the hypervisor took {100 * stolen:.0f} % of the processors' time (steal)")
    for threads, (first, *_, last) in sorted(each for each in bandwidth.items() if len(each[1]) > 1):
        if abs(last - first) > DRIFT * max(first, last):
            found.append(f"the read bandwidth of {threads} threads went from {first:.1f} to {last:.1f} GB/s")
    return found


class PeakMemory:
    """The most memory that this process had resident at once since this was made; None where nobody can tell.

    Linux forgets the old peak on request (proc_pid_clear_refs(5)). Elsewhere it is known only once it is exceeded.
    """

    def __init__(self) -> None:
        self._forgotten = False
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self._forgotten = True
        self._before = peak_rss()

    def __call__(self) -> int | None:
        now = peak_rss()
        return now if now > self._before or self._forgotten else None


def peak_rss() -> int:
    """Bytes; 0 where the system does not say."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    with suppress(ImportError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return 0
