"""How ternary weights lie in the GPU's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 64, 64  # of a tile
TILE_BYTES = ROWS * COLUMNS // 4
MOST_COLUMNS = 1 << 17  # sums of 4^3 * 2 * 127 still fit into 32 bits


def count(size: int, tile: int) -> int:
    return -(-size // tile)


def power_of_two(value: int) -> int:
    """The least that is no less."""
    return 1 << max(0, value - 1).bit_length()


def pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Codes (n, k) of -1, 0, 1 -> (tiles down, tiles along, 16, 64).

    Byte k of line r of a tile has column k of the rows r, r + 16, r + 32 and r + 48 in its bit pairs, lowest first, as
    w + 1. What fills the last tiles up is 0, as w: it adds nothing to a sum.
    """
    n, k = codes.shape
    down, along = count(n, ROWS), count(k, COLUMNS)
    packed = np.empty((down, along, 16, COLUMNS), np.uint8)
    for first in range(0, down, 64):  # a part at a time: the copy that is filled up stays small
        part = codes[first * ROWS : (first + 64) * ROWS]
        tiles = min(64, down - first)
        whole = np.ones((tiles * ROWS, along * COLUMNS), np.uint8)
        whole[: len(part), :k] = part.view(np.uint8) + np.uint8(1)
        fields = whole.reshape(tiles, 4, 16, along, COLUMNS)
        lines = fields[:, 0] | fields[:, 1] << 2 | fields[:, 2] << 4 | fields[:, 3] << 6  # (tiles, 16, along, 64)
        packed[first : first + tiles] = lines.transpose(0, 2, 1, 3)
    return packed


def unpack(packed: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.int8]:
    """The codes (n, k) that `pack` was given."""
    down, along = packed.shape[:2]
    fields = np.stack([packed >> 2 * field & 3 for field in range(4)], axis=1)  # (down, 4, along, 16, 64)
    rows: NDArray[Any] = fields.transpose(0, 1, 3, 2, 4).reshape(down * ROWS, along * COLUMNS)
    return rows[: shape[0], : shape[1]].astype(np.int8) - np.int8(1)
