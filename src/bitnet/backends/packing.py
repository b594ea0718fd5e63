"""How the C++ core keeps ternary weights: what may be asked for, and what `auto` takes.

A packing is "2bit" or "1.6bit", which are multiplied (kernel "i2_s"), or "tl1" or "tl2", which index tables of partial
sums. Every packing gives the same bits; they differ in bytes and in speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from bitnet.errors import ParameterError

WEIGHTS = ("auto", "2bit", "1.6bit")
KERNELS = ("auto", "i2_s", "tl1", "tl2")
BITS = {"2bit": 2.0, "1.6bit": 1.6, "tl1": 2.0, "tl2": 5 / 3}  # of a weight
GROUPED = ("2bit", "tl1")  # those that take a scale for each group of columns

GAIN = 1.1  # 1.6 bits must be this much faster, so that noise does not decide
SMALL = 4 << 20  # bytes at 2 bits that stay in the cores' second caches: arithmetic counts there, not density
LARGE = 64 << 20  # bytes beyond which a model is measured like a model of this size
COLUMNS = 2560  # of what is measured
PASSES = 4

Seconds = Callable[[str, int], float]  # of one product with so many weights, kept in a packing


def asked(weights: str, kernel: str) -> str:
    """The packing that the two options ask for, or "auto"; ParameterError where they make no sense."""
    for name, value, known in (("weights", weights, WEIGHTS), ("kernel", kernel, KERNELS)):
        if value not in known:
            raise ParameterError(f"{name} is {value!r}.", f"Known: {', '.join(known)}.")
    if kernel in BITS and weights != "auto":
        raise ParameterError(
            f"The kernel {kernel} has a packing of its own; weights is {weights!r}.",
            f"Leave weights at auto, or take the kernel i2_s for {weights}.",
        )
    return kernel if kernel in BITS else weights


def nbytes(count: int, packing: str) -> int:
    """Bytes of `count` weights, but for what pads them."""
    return int(count * BITS[packing] / 8)


def settled(packing: str, count: int, room: int, seconds: Seconds | None = None) -> str:
    """`packing`, or what `auto` takes for a model of `count` ternary weights that has `room` bytes for them.

    1.6 bits where 2 bits would not fit, or where a measurement on this machine, instruction set and number of threads
    has them faster by GAIN; 2 bits elsewhere.
    """
    if packing != "auto":
        return packing
    if nbytes(count, "1.6bit") <= room < nbytes(count, "2bit"):
        return "1.6bit"
    if nbytes(count, "2bit") <= SMALL:
        return "2bit"
    seconds, size = seconds or measured, min(count, 4 * LARGE)
    return "1.6bit" if GAIN * seconds("1.6bit", size) <= seconds("2bit", size) else "2bit"


def measured(packing: str, count: int) -> float:
    """Seconds of one token's product with `count` weights, measured once in a process."""
    import bitnet._core as _core

    return _measured(packing, max(1, count // COLUMNS), _core.isa(), _core.threads())


@lru_cache
def _measured(packing: str, rows: int, isa: str, threads: int) -> float:
    import bitnet._core as _core

    weight = _core.TernaryWeight.zeros(rows, COLUMNS, packing)
    x = np.ones((1, COLUMNS), np.float32)
    return min(_seconds(lambda: _core.linear(x, [weight])) for _ in range(PASSES))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
