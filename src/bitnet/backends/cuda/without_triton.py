"""Kernels of many rows in CUDA C++, for cards older than compute capability 8.0: any card can run them."""

from __future__ import annotations

from typing import Any

from bitnet.backends.cuda import tiles
from bitnet.backends.cuda.cache import TYPES, KVCache
from bitnet.backends.cuda.device import THREADS, Array
from bitnet.backends.cuda.many_rows import WIDTH, Codes, ManyRows
from bitnet.backends.cuda.weights import DENSE, DenseMatrix, TernaryMatrix

# As gemm.cu and splits.cu have them.
WARPS = THREADS // 32
TOKENS, GROUPED_TOKENS = 32, 16  # of a warp
DENSE_ROWS, FEW_TOKENS, DENSE_TOKENS = 128, 8, 32  # of a block
QUERIES, STEP, PITCH = 32, 32, 132


class WithoutTriton(ManyRows):
    def product(self, x: Codes, weight: TernaryMatrix, out: Array, residual: Array | None) -> None:
        codes, multipliers, sums = x
        (tokens, rows), along = out.shape, codes.shape[1] // tiles.COLUMNS
        down, each = tiles.count(rows, tiles.ROWS), GROUPED_TOKENS if weight.group else TOKENS
        across = warps_across(down, tiles.count(tokens, each), self.device.processors)
        grid = (down, tiles.count(tokens, each * across))
        after = (weight.tiles, weight.scales, residual, out, tokens, rows, along)
        if weight.group:
            grid = (tiles.count(down, WARPS // across), grid[1])
            share = weight.group // tiles.COLUMNS
            self.device.run("gemm_grouped", grid, codes, multipliers, *after, share, across)
        else:
            self.device.run("gemm_ternary", grid, codes, multipliers, sums, *after, across)

    def floats(self, x: Array, weight: DenseMatrix, out: Array) -> None:
        together = FEW_TOKENS if len(x) <= FEW_TOKENS else DENSE_TOKENS
        self._floats(x, weight, out, tiles.count(len(x), together), together, None, None, weight.shape[0])

    def gathered(self, x: Array, weight: DenseMatrix, ids: Array, counts: Array, out: Array) -> None:
        self._floats(x, weight, out, len(x), FEW_TOKENS, ids, counts, ids.shape[1])

    def _floats(
        self,
        x: Array,
        weight: DenseMatrix,
        out: Array,
        blocks: int,
        together: int,
        ids: Array | None,
        counts: Array | None,
        width: int,
    ) -> None:
        """blocks: along the tokens. width: of a row of `out`."""
        values = (x, weight.data, DENSE[weight.dtype], out, len(x), *weight.shape, together, ids, counts, width)
        self.device.run("gemm_dense", (tiles.count(width, DENSE_ROWS), blocks), *values)

    def queries(self, group: int) -> int:
        return max(1, QUERIES // group)

    def splits(self, cache: KVCache, group: int, runs: int, splits: int, *values: Any) -> None:
        grid = (runs, cache.kv_heads * tiles.count(group, QUERIES), splits)
        shared = 4 * (QUERIES * 4 * tiles.count(cache.head_dim, 4) + STEP * PITCH)
        self.device.run("attend_splits", grid, *values, group, WIDTH, TYPES[cache.dtype], shared=shared)


def warps_across(down: int, runs: int, processors: int) -> int:
    """Of a block's warps those that have tokens of their own, a power of two: as many as leave each processor two
    blocks. More share what they read."""
    across = 1
    while across < min(WARPS, runs) and down * tiles.count(runs, 2 * across) >= 2 * processors:
        across *= 2
    return across
