"""The machine that a number was measured on."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from bitnet import backends
from bitnet.models import Decoder

ON_CPU = ("cpu", "tvm", "compiled")  # backends whose threads are counted as the core's
BANDWIDTH_BYTES = 512 << 20  # far more than any cache of a processor's cores holds


def cpu_info() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware"))}
    return ", ".join(sorted(names)) or platform.processor() or platform.machine()


class Bandwidth:
    """GB/s at which so many threads read memory, measured once or oftener, the best seen; None without the core."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self.measured: dict[int, list[float]] = {}

    def measure(self, threads: Iterable[int]) -> None:
        """Once more for each of these numbers of threads."""
        if self._backend != "cpu":
            return
        import bitnet._core as _core

        for each in set(threads):
            self.measured.setdefault(each, []).append(_core.read_bandwidth(BANDWIDTH_BYTES, each))

    def __call__(self, threads: int) -> float | None:
        if threads not in self.measured:
            self.measure([threads])
        return max(self.measured.get(threads, ()), default=None)


def use_threads(backend: str, threads: int) -> int:
    """Run on so many threads from now on (0: all that are allowed) and say how many that is."""
    if not backend.startswith(ON_CPU):
        return 1
    return backends.set_threads(threads)


def packings(backend: str, model: Decoder) -> str:
    """How the model's ternary weights are kept; "" without the C++ core."""
    if backend != "cpu":
        return ""
    from bitnet.backends.cpu import packings

    return packings(model.weights.values())


def isa(backend: str) -> str:
    if backend != "cpu":
        return backend
    import bitnet._core as _core

    return str(_core.isa())
