"""The ternary kernels side by side: every packing on every instruction set of this machine, cached and from memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

import numpy as np

from bitnet.backends.packing import BITS
from bitnet.bench.machine import Bandwidth, cpu_info, use_threads
from bitnet.errors import ResourceError

# Where the weights lie: rows, columns and how many such matrices take turns.
PLACES = {"L2": (1280, 2560, 1), "memory": (6912, 2560, 20)}
TOKENS = (1, 64)
WINDOW = 0.05  # seconds of one sample, or one product where that takes longer

KERNEL = {"2bit": "i2_s", "1.6bit": "i2_s", "tl1": "tl1", "tl2": "tl2"}


@dataclass(frozen=True, slots=True)
class KernelResult:
    """One kernel on one instruction set: the best of its samples.

    bits: of a weight, padding included. gweights_per_s: 1e9 weights times tokens. gb_per_s: bytes of weights read,
    once for all tokens. read_gb_per_s: what so many threads read from memory at best, and bandwidth_share the part of
    it; both only for a token at a time from there.
    """

    kernel: str
    weights: str
    bits: float
    isa: str
    threads: int
    place: str
    rows: int
    columns: int
    matrices: int
    tokens: int
    gweights_per_s: float
    gb_per_s: float
    read_gb_per_s: float | None
    bandwidth_share: float | None
    cpu_info: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(threads: Iterable[int], samples: int, progress: Callable[[str], None]) -> Iterator[KernelResult]:
    """Results as they come; the instruction set in use stays what it was."""
    try:
        import bitnet._core as _core
    except ImportError:
        raise ResourceError("There are no kernels to compare: the C++ core is not built.") from None
    bandwidth, before = Bandwidth("cpu"), _core.isa()
    try:
        for used in (use_threads("cpu", count) for count in threads):
            for place, (rows, columns, count) in PLACES.items():
                for packing in BITS:
                    progress(f"{packing} in {place}")
                    matrices = [_core.TernaryWeight.random(rows, columns, i, 1.0, packing) for i in range(count)]
                    for isa in _core.isas():
                        _core.set_isa(isa)
                        for tokens in TOKENS:
                            progress(f"{packing} in {place}, {isa}, {tokens} tokens")
                            seconds = fastest(matrices, tokens, samples)
                            read = bandwidth(used) if place == "memory" and tokens == 1 else None
                            yield result(packing, isa, used, place, matrices, tokens, seconds, read)
    finally:
        _core.set_isa(before)


def fastest(matrices: list[Any], tokens: int, samples: int) -> float:
    """Seconds of one product, the least mean of a sample; they go through all matrices in turn."""
    import bitnet._core as _core

    x = np.random.default_rng(0).standard_normal((tokens, matrices[0].shape[1])).astype(np.float32)
    turns, best = cycle(matrices), float("inf")
    _core.linear(x, [next(turns)])
    for _ in range(samples):
        start, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < WINDOW or not done:
            _core.linear(x, [next(turns)])
            done += 1
        best = min(best, elapsed / done)
    return best


def result(
    packing: str,
    isa: str,
    threads: int,
    place: str,
    matrices: list[Any],
    tokens: int,
    seconds: float,
    read: float | None,
) -> KernelResult:
    (rows, columns), nbytes = matrices[0].shape, matrices[0].nbytes
    moved = nbytes / seconds / 1e9
    return KernelResult(
        kernel=KERNEL[packing],
        weights=packing,
        bits=8 * nbytes / (rows * columns),
        isa=isa,
        threads=threads,
        place=place,
        rows=rows,
        columns=columns,
        matrices=len(matrices),
        tokens=tokens,
        gweights_per_s=rows * columns * tokens / seconds / 1e9,
        gb_per_s=moved,
        read_gb_per_s=read,
        bandwidth_share=moved / read if read else None,
        cpu_info=cpu_info(),
    )


HEADS = ("kernel", "bits", "isa", "threads", "weights in", "tokens", "Gweights/s", "GB/s (of read bandwidth)")
WIDTHS = (6, 5, 12, 7, 10, 6, 10, 24)
RIGHT = (1, 3, 5, 6, 7)


def markdown(results: Iterable[KernelResult]) -> Iterator[str]:
    """A table, each line as soon as it is known."""
    yield line(HEADS)
    yield line([("-" * (w - 1) + ":") if i in RIGHT else "-" * w for i, w in enumerate(WIDTHS)])
    found: KernelResult | None = None
    for found in results:
        yield line(row(found))
    if found:
        yield f"\n{found.cpu_info}"


def row(r: KernelResult) -> list[str]:
    share = f" ({100 * r.bandwidth_share:.0f} % of {r.read_gb_per_s:.1f})" if r.bandwidth_share else ""
    return [
        r.kernel,
        f"{r.bits:.2f}",
        r.isa,
        str(r.threads),
        r.place,
        str(r.tokens),
        f"{r.gweights_per_s:.1f}",
        f"{r.gb_per_s:.1f}{share}",
    ]


def line(cells: Iterable[str]) -> str:
    padded = (
        cell.rjust(width) if i in RIGHT else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return f"| {' | '.join(padded)} |"
