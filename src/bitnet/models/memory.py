"""Whether a model fits into the memory that this process may still take, found out before any of it is taken."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from bitnet.errors import ResourceError
from bitnet.formats.checkpoint import TensorInfo
from bitnet.machine import memory
from bitnet.quant.blocks import BLOCKS

GIB = 2**30
DENSE_BYTES = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 34 / 32} | {
    name: kind.nbytes / kind.weights for name, kind in BLOCKS.items()
}


def check_memory(path: Path, needed: int, free: int | None = None) -> None:
    """ResourceError when the weights need more memory than there is: `free` bytes, None: on this machine."""
    free = available_bytes() if free is None else free
    if needed > free:
        raise ResourceError(
            f"{path}: the weights need {needed / GIB:.2f} GiB of memory; {free / GIB:.2f} GiB are free.",
            "Take a smaller model, or try all the same with --force.",
        )


def resident_bytes(info: TensorInfo, ternary: bool, bits: float = 2.0) -> int:
    """What a tensor takes once it is packed: so many bits a weight where it is ternary, else its stored precision."""
    return int(math.prod(info.shape) * (bits / 8 if ternary else DENSE_BYTES.get(info.dtype, 4.0)))


def screen_bytes(info: TensorInfo) -> int:
    """What a screen of an output head takes: a byte a weight, and three floats a row."""
    rows, columns = info.shape
    return int(rows * (columns + 12))


def room_beside(needed: int) -> int:
    return available_bytes() - needed


def fits(needed: int) -> bool:
    return needed <= available_bytes()


def available_bytes() -> int:
    """Memory that can be had without swapping, within the limits of the control groups; no end where nothing tells."""
    free = memory.available_bytes()
    return sys.maxsize if free is None else free
