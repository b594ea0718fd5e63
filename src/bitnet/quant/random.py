"""Random ternary matrices, the same in every backend and on every machine."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from bitnet.quant.tensor import TernaryTensor

_ROWS, _COLUMNS = 16, 16  # that a draw is spread over; one of 64 bits gives 16 codes of a row
_PIECE = 1 << 14  # draws at a time: they stay in the processor's cache


class RandomTernary(TernaryTensor):
    """Uniform codes with one scale, drawn when they are asked for. A backend may draw them itself, in its own layout:
    `TernaryWeight.random` of the C++ core draws the same ones from the same seed.
    """

    seed: int
    _shape: tuple[int, int]

    def __init__(self, shape: tuple[int, int], seed: int, scale: float) -> None:
        values = {"_shape": shape, "seed": seed, "scales": np.asarray(scale, np.float32)}
        for name, value in values.items():
            object.__setattr__(self, name, value)  # the class is frozen

    @property
    def shape(self) -> tuple[int, int]:
        return self._shape

    @cached_property
    def codes(self) -> NDArray[np.int8]:
        return random_codes(self.shape, self.seed)


def random_codes(shape: tuple[int, int], seed: int) -> NDArray[np.int8]:
    """int8 (n, k) of -1, 0, 1.

    Draw number 16 b + r of a group of 16 rows holds columns 16 b to 16 b + 15 of row r: column 4 f + j is digit f, to
    base 3, of the j-th 16 bits of the draw, scaled to 0 to 80.
    """
    n, k = shape
    groups, blocks = -(-n // _ROWS), -(-k // _COLUMNS)
    codes = np.empty((groups, _ROWS, blocks, 4, 4), np.int8)
    step = max(1, _PIECE // (_ROWS * blocks))
    for first in range(0, groups, step):
        last = min(groups, first + step)
        counters = np.arange(first * blocks * _ROWS, last * blocks * _ROWS, dtype=np.uint64)
        parts = splitmix64(np.uint64(seed), counters * np.uint64(4)).view("<u2").reshape(-1, blocks, _ROWS, 4)
        drawn = four_codes().take(parts).view(np.int8).reshape(*parts.shape, 4)  # (group, block, row, j, f)
        codes[first:last] = drawn.transpose(0, 2, 1, 4, 3)
    return np.ascontiguousarray(codes.reshape(groups * _ROWS, blocks * _COLUMNS)[:n, :k])


@cache
def four_codes() -> NDArray[np.uint32]:
    """What each 16 bits give: the digits to base 3 of one of 3^4 numbers, less one, the lowest first, in a word."""
    digits = (np.arange(1 << 16)[:, None] * 81 >> 16) // 3 ** np.arange(4) % 3 - 1
    return digits.astype(np.int8).view(np.uint32).ravel()


def splitmix64(seed: np.uint64, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64 bits (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    with np.errstate(over="ignore"):
        x = counters + (seed * np.uint64(0xD1342543DE82EF95) + np.uint64(0x9E3779B97F4A7C15))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
