"""The output head, screened: exactly the likeliest logits, for the bytes of an int8 copy of the head.

Every logit lies between two bounds. At least `top` of them reach the top-th largest lower bound, so the rows whose
upper bound does not are out; the others are computed as the whole head would be, to the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bitnet.backends.cuda import tiles
from bitnet.backends.cuda.device import Array
from bitnet.backends.cuda.values import Prepared
from bitnet.backends.cuda.weights import DENSE, DenseMatrix, Screen

if TYPE_CHECKING:
    from bitnet.backends.cuda.ops import CUDA

LINES = 16  # of a tile, as screen.cu has it
MOST = 4096  # rows that are computed after all; where more might matter, the whole head is


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """x (S, hidden) before a head that is screened: how much of it is computed depends on who asks."""

    x: Array
    weight: DenseMatrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape[0], self.weight.shape[0]

    def __len__(self) -> int:
        return self.x.shape[0]


def make_screen(ops: CUDA, weight: DenseMatrix) -> Screen:
    rows, columns = weight.shape
    down, along = tiles.count(rows, LINES), tiles.count(columns, tiles.COLUMNS)
    codes = ops.device.zeros((down, along, LINES, tiles.COLUMNS), np.int8)
    measures = ops.device.zeros((rows, 3))
    ops.device.run("screen_rows", down * LINES, weight.data, DENSE[weight.dtype], rows, columns, codes, measures)
    return Screen(codes, measures)


def screened(ops: CUDA, scored: Scored, tops: Array, room: int, draws: Array | None = None) -> tuple[Array, Array]:
    """As `ops.select` gives them. A row of which too many might matter has a count of more than `room`."""
    x, weight, screen = scored.x, scored.weight, scored.weight.screen
    assert screen is not None
    tokens, columns = x.shape
    rows, device = weight.shape[0], ops.device
    codes, multipliers, _ = ops.quantise(Prepared(x))
    of_x = device.empty((tokens, 2))
    ops.device.run("measure_rows", tokens, x, codes, multipliers, columns, of_x)
    bounds = device.empty((2 * tokens, rows))  # the lower ones first
    stride = tiles.count(codes.shape[1], 128) * 128 + 64
    blocks = tiles.count(tiles.count(rows, LINES), 8)
    head = (screen.codes, screen.measures, rows, columns, bounds)
    ops.device.run("bound_logits", blocks, codes, multipliers, of_x, tokens, *head, shared=tokens * stride)
    ids, counts = device.empty((tokens, MOST), np.int32), device.empty((tokens,), np.int32)
    ops.device.run("select_possible", tokens, bounds, ops.chunks(bounds), tops, rows, MOST, counts, ids)
    values = device.empty((tokens, MOST))
    ops.many.gathered(x, weight, ids, counts, values)
    return ops.largest(values, tops, room, draws, ids, counts)
