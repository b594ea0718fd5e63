"""Float weights in blocks, as ggml stores embeddings and output heads: Q4_0, Q5_0 and the K-quants.

A weight is a scale times a small integer; in the K-quants 16 or 32 weights share a part of the scale, itself a small
integer times the block's float16 `d`. Rows stay in these bytes and are decoded when they are read. The arithmetic,
float32 in this order, is that of ggml's dequantize_row_*: (d * part) * q, or that minus dmin * minimum.

In every part of a block the weights of a run of `width` bytes lie byte by byte in the lowest bits, then byte by byte
in the next ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Blocks = NDArray[np.void]
_CHUNK = 4096  # blocks at a time


@dataclass(frozen=True, slots=True)
class BlockType:
    """`weights` of a row are stored as one item of `layout`; `decode` takes (blocks,) to (blocks, weights)."""

    weights: int
    layout: np.dtype[np.void]
    decode: Callable[[Blocks], Floats]

    @property
    def nbytes(self) -> int:
        return self.layout.itemsize

    def scales(self, data: NDArray[np.uint8]) -> Floats:
        """The float16 scales of all blocks: where they are finite, all weights are."""
        blocks = data.reshape(-1).view(self.layout)
        names = [name for name in ("d", "dmin") if name in (self.layout.names or ())]
        return np.stack([blocks[name] for name in names]).astype(np.float32)


def decode(dtype: str, data: NDArray[np.uint8]) -> Floats:
    """Rows (..., bytes) of a block type as float32 (..., weights)."""
    kind = BLOCKS[dtype]
    blocks = np.ascontiguousarray(data).reshape(-1).view(kind.layout)
    values = np.empty((len(blocks), kind.weights), np.float32)
    for start in range(0, len(blocks), _CHUNK):
        values[start : start + _CHUNK] = kind.decode(blocks[start : start + _CHUNK])
    return values.reshape(*data.shape[:-1], -1)


def _fields(packed: NDArray[np.uint8], width: int, bits: int) -> NDArray[np.uint8]:
    """(blocks, bytes) to (blocks, bytes * 8 / bits): the fields of `bits` bits, in the order of the weights."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = packed.reshape(len(packed), -1, 1, width) >> shifts & np.uint8((1 << bits) - 1)
    return fields.reshape(len(packed), -1)


def _column(values: NDArray[Any]) -> Floats:
    return values.astype(np.float32)[:, None]


def _q4_0(blocks: Blocks) -> Floats:
    return _column(blocks["d"]) * (_fields(blocks["qs"], 16, 4).astype(np.float32) - 8)


def _q5_0(blocks: Blocks) -> Floats:
    high = np.unpackbits(blocks["qh"], axis=1, bitorder="little")
    return _column(blocks["d"]) * ((_fields(blocks["qs"], 16, 4) | high << 4).astype(np.float32) - 16)


def _scaled(scales: Floats, q: NDArray[Any]) -> Floats:
    """(blocks, parts) times the (blocks, weights) of each part."""
    parts = q.reshape(*scales.shape, -1).astype(np.float32)
    return (scales[:, :, None] * parts).reshape(q.shape)


def _q3_k(blocks: Blocks) -> Floats:
    packed = blocks["scales"]
    parts = (_fields(packed[:, :8], 8, 4) | _fields(packed[:, 8:], 4, 2) << 4).astype(np.int8) - np.int8(32)
    q = (_fields(blocks["qs"], 32, 2) | _fields(blocks["hmask"], 32, 1) << 2).astype(np.int8) - np.int8(4)
    return _scaled(_column(blocks["d"]) * parts.astype(np.float32), q)


def unpack_scales(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The 12 bytes of Q4_K and Q5_K as eight scales and eight minima of 6 bits."""
    low, minima, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        np.concatenate([low & 63, (rest & 15) | (low >> 2 & 0x30)], axis=1),
        np.concatenate([minima & 63, (rest >> 4) | (minima >> 2 & 0x30)], axis=1),
    )


def pack_scales(scales: NDArray[np.uint8], minima: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse of unpack_scales."""
    (low, high), (low_minima, high_minima) = np.split(scales, 2, axis=1), np.split(minima, 2, axis=1)
    first, second = low | (high & 0x30) << 2, low_minima | (high_minima & 0x30) << 2
    return np.concatenate([first, second, (high & 15) | (high_minima & 15) << 4], axis=1)


def _with_minima(blocks: Blocks, q: NDArray[Any]) -> Floats:
    scales, minima = (each.astype(np.float32) for each in unpack_scales(blocks["scales"]))
    least = _column(blocks["dmin"]) * minima
    return _scaled(_column(blocks["d"]) * scales, q) - np.repeat(least, 32, axis=1)


def _q4_k(blocks: Blocks) -> Floats:
    return _with_minima(blocks, _fields(blocks["qs"], 32, 4))


def _q5_k(blocks: Blocks) -> Floats:
    return _with_minima(blocks, _fields(blocks["qs"], 32, 4) | _fields(blocks["qh"], 32, 1) << 4)


def _q6_k(blocks: Blocks) -> Floats:
    q = (_fields(blocks["ql"], 64, 4) | _fields(blocks["qh"], 32, 2) << 4).astype(np.int8) - np.int8(32)
    return _scaled(_column(blocks["d"]) * blocks["scales"].astype(np.float32), q)


def _layout(*fields: tuple[str, str, int] | tuple[str, str]) -> np.dtype[np.void]:
    return np.dtype(list(fields))


_D, _DMIN, _SCALES = ("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12)
BLOCKS = {
    "Q4_0": BlockType(32, _layout(_D, ("qs", "u1", 16)), _q4_0),
    "Q5_0": BlockType(32, _layout(_D, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_0),
    "Q3_K": BlockType(256, _layout(("hmask", "u1", 32), ("qs", "u1", 64), _SCALES, _D), _q3_k),
    "Q4_K": BlockType(256, _layout(_D, _DMIN, _SCALES, ("qs", "u1", 128)), _q4_k),
    "Q5_K": BlockType(256, _layout(_D, _DMIN, _SCALES, ("qh", "u1", 32), ("qs", "u1", 128)), _q5_k),
    "Q6_K": BlockType(256, _layout(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D), _q6_k),
}
