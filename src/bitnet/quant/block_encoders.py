"""Floats to Q4_K and Q6_K, the types in which small files keep embeddings and output heads.

A block of 256 is cut into parts (16 of 16 weights in Q6_K, 8 of 32 in Q4_K). Each part is first fitted alone by least
squares, from several starting scales; then the scales of the parts are themselves rounded to multiples of the block's
`d`, and the codes are chosen anew for the rounded scales, so that no weight pays for two roundings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ParameterError
from bitnet.quant.blocks import BLOCKS, pack_scales

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
_CHUNK = 2048  # blocks at a time


def encode(dtype: str, values: Floats) -> Bytes:
    """Rows (..., weights) as rows of bytes of `dtype`, "Q4_K" or "Q6_K"."""
    kind = BLOCKS[dtype]
    flat = np.ascontiguousarray(values, np.float32).reshape(-1, kind.weights)
    if not (np.abs(flat) < 1e6).all():
        raise ParameterError(f"{dtype} cannot store values that are not finite or beyond 1e6.")
    blocks = np.zeros(len(flat), kind.layout)
    for start in range(0, len(flat), _CHUNK):
        ENCODERS[dtype](flat[start : start + _CHUNK], blocks[start : start + _CHUNK])
    return blocks.view(np.uint8).reshape(*values.shape[:-1], -1)


def _round(values: Floats, least: int, most: int) -> Floats:
    rounded: Floats = np.clip(np.rint(values), least, most)
    return rounded


def _divide(a: Floats, b: Floats) -> Floats:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast_shapes(a.shape, b.shape), np.float32), where=b != 0)


def _symmetric(x: Floats, most: int) -> Floats:
    """For every row of x (parts, weights) the scale s that makes s * round(x / s) in [-most, most - 1] fit best."""
    widest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    best, error = np.zeros_like(widest), np.full_like(widest, np.inf)
    for step in range(-9, 10):
        codes = _round(x * _divide(np.float32(-(most + 0.1 * step)), widest), -most, most - 1)
        scale = _divide((x * codes).sum(axis=1, keepdims=True), (codes * codes).sum(axis=1, keepdims=True))
        found = np.square(x - scale * codes).sum(axis=1, keepdims=True)
        best, error = np.where(found < error, scale, best), np.minimum(found, error)
    return best


def _affine(x: Floats, most: int) -> tuple[Floats, Floats]:
    """The scale s and the minimum m, both >= 0, with which s * q - m, q in [0, most], fits each row best."""
    low, high = np.minimum(x.min(axis=1, keepdims=True), 0), x.max(axis=1, keepdims=True)
    width = np.maximum(high, 0) - low
    best = (width / most, -low)
    error = np.full_like(low, np.inf)
    for step in range(-8, 13):
        scale, minimum = width / np.float32(most + 0.1 * step), -low
        for _ in range(2):  # codes for a scale and a minimum, then the best of both for the codes
            codes = _round(_divide(x + minimum, scale), 0, most)
            scale, minimum = _line(x, codes, scale, minimum)
            found = np.square(x - (scale * codes - minimum)).sum(axis=1, keepdims=True)
            better = found < error
            best = (np.where(better, scale, best[0]), np.where(better, minimum, best[1]))
            error = np.minimum(found, error)
    return best


def _line(x: Floats, q: Floats, scale: Floats, minimum: Floats) -> tuple[Floats, Floats]:
    """Least squares of x ~ s * q - m with s > 0 and m >= 0, row by row; what was given where there is none."""
    count = np.float32(x.shape[1])
    sum_q, sum_x = q.sum(axis=1, keepdims=True), x.sum(axis=1, keepdims=True)
    sum_qq, sum_qx = (q * q).sum(axis=1, keepdims=True), (q * x).sum(axis=1, keepdims=True)
    slope = _divide(count * sum_qx - sum_q * sum_x, count * sum_qq - sum_q * sum_q)
    least = (slope * sum_q - sum_x) / count
    through_zero = _divide(sum_qx, sum_qq)
    slope, least = np.where(least < 0, through_zero, slope), np.maximum(least, 0)
    sound = slope > 0
    return np.where(sound, slope, scale), np.where(sound, least, minimum)


def _half(values: Floats) -> NDArray[np.float16]:
    return values.astype(np.float16)


def _part_scales(scales: Floats, least: int, most: int) -> tuple[NDArray[np.float16], Floats]:
    """d of each block and the parts' scales (blocks, parts) as integers of at most `most`, or at least `least`."""
    widest = np.take_along_axis(scales, np.abs(scales).argmax(axis=1)[:, None], axis=1)
    d = _half(widest / np.float32(least if least else most))
    return d[:, 0], _round(_divide(scales, d.astype(np.float32)), least, most)


def _pack(fields: NDArray[Any], width: int, bits: int) -> Bytes:
    """The inverse of blocks._fields: (blocks, weights) of `bits` bits to bytes, in runs of `width` bytes."""
    count = 8 // bits
    runs = fields.reshape(len(fields), -1, count, width)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    packed: Bytes = np.bitwise_or.reduce(runs << shifts, axis=2).reshape(len(fields), -1)
    return packed


def _q6_k(values: Floats, blocks: NDArray[np.void]) -> None:
    parts = values.reshape(-1, 16)
    d, scales = _part_scales(_symmetric(parts, 32).reshape(-1, 16), -128, 127)
    steps = (d.astype(np.float32)[:, None] * scales).reshape(-1, 1)
    q = (_round(_divide(parts, steps), -32, 31) + 32).astype(np.uint8).reshape(-1, 256)
    blocks["d"], blocks["scales"] = d, scales
    blocks["ql"], blocks["qh"] = _pack(q & 15, 64, 4), _pack(q >> 4, 32, 2)


def _q4_k(values: Floats, blocks: NDArray[np.void]) -> None:
    parts = values.reshape(-1, 32)
    scale, minimum = (each.reshape(-1, 8) for each in _affine(parts, 15))
    d, scales = _part_scales(scale, 0, 63)
    dmin, minima = _part_scales(minimum, 0, 63)
    steps = (d.astype(np.float32)[:, None] * scales).reshape(-1, 1)
    least = (dmin.astype(np.float32)[:, None] * minima).reshape(-1, 1)
    q = _round(_divide(parts + least, steps), 0, 15).astype(np.uint8).reshape(-1, 256)
    blocks["d"], blocks["dmin"], blocks["qs"] = d, dmin, _pack(q, 32, 4)
    blocks["scales"] = pack_scales(scales.astype(np.uint8), minima.astype(np.uint8))


ENCODERS: dict[str, Callable[[Floats, NDArray[Any]], None]] = {"Q4_K": _q4_k, "Q6_K": _q6_k}
