"""The machine that a number was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

from bitnet import backends
from bitnet.models import Decoder

BANDWIDTH_BYTES = 512 << 20  # far more than any cache of a processor's cores holds


def cpu_info() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware"))}
    return ", ".join(sorted(names)) or platform.processor() or platform.machine()


class Bandwidth:
    """GB/s at which so many threads read memory, measured when first asked for; None without the C++ core."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._known: dict[int, float] = {}

    def __call__(self, threads: int) -> float | None:
        if self._backend != "cpu":
            return None
        import bitnet._core as _core

        if threads not in self._known:
            self._known[threads] = _core.read_bandwidth(BANDWIDTH_BYTES, threads)
        return self._known[threads]


def use_threads(backend: str, threads: int) -> int:
    """Run on so many threads from now on (0: all that are allowed) and say how many that is."""
    if backend != "cpu":
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
