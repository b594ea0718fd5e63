"""Kernels of many rows in Triton, for cards from compute capability 8.0 on: which, and over how many programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from bitnet.backends.cuda import tiles
from bitnet.backends.cuda.cache import KVCache
from bitnet.backends.cuda.device import THREADS, Array, Device, TritonKernel, address
from bitnet.backends.cuda.many_rows import WIDTH, Codes, ManyRows
from bitnet.backends.cuda.weights import DenseMatrix, TernaryMatrix

DENSE_ROWS, DENSE_TOKENS = 128, 32  # of a program of dense_gemm; at least as many tokens as are ever gathered for
QUERIES = 64  # rows and heads of a program of attention
POINTERS = {"F32": "*fp32", "F16": "*fp16", "BF16": "*bf16"}


class WithTriton(ManyRows):
    def launch(self, kernel: TritonKernel, grid: tuple[int, int, int], *values: Any) -> None:
        self.device.launch(kernel, grid, [address(value) for value in values])

    def product(self, x: Codes, weight: TernaryMatrix, out: Array, residual: Array | None) -> None:
        codes, multipliers, _ = x
        tokens, rows = out.shape
        along = codes.shape[1] // tiles.COLUMNS
        down, width, splits = gemm_shape(tokens, rows, along, self.device, bool(weight.group))
        share = weight.group // tiles.COLUMNS if weight.group else tiles.count(along, splits)
        splits = 1 if weight.group else tiles.count(along, share)
        parts = self.device.empty((splits, tokens, rows), np.int32) if splits > 1 else None
        kernel = gemm_kernel(down, width, parts is not None, bool(weight.group), residual is not None)
        values = (codes, multipliers, weight.tiles, weight.scales, residual, parts or out, tokens, rows, along, share)
        self.launch(kernel, (tiles.count(rows, down * tiles.ROWS), tiles.count(tokens, width), splits), *values)
        if parts is not None:
            blocks = min(tiles.count(tokens * rows, THREADS), 8 * self.device.processors)
            scales = (multipliers, weight.scales)
            self.device.run("finish_product", blocks, parts, splits, *scales, tokens, rows, residual, out)

    def floats(self, x: Array, weight: DenseMatrix, out: Array) -> None:
        rows, columns = weight.shape
        kernel = dense_kernel(weight.dtype, columns % 16 == 0)
        grid = (tiles.count(len(x), DENSE_TOKENS), tiles.count(rows, DENSE_ROWS), 1)
        self.launch(kernel, grid, x, weight.data, out, len(x), rows, columns, 0, 0)

    def gathered(self, x: Array, weight: DenseMatrix, ids: Array, counts: Array, out: Array) -> None:
        rows, columns = weight.shape
        most = ids.shape[1]
        kernel = dense_kernel(weight.dtype, columns % 16 == 0, most)
        grid = (len(x), tiles.count(most, DENSE_ROWS), 1)
        self.launch(kernel, grid, x, weight.data, out, len(x), rows, columns, ids, counts)

    def queries(self, group: int) -> int:
        return max(1, QUERIES // tiles.power_of_two(group))

    def splits(self, cache: KVCache, group: int, runs: int, splits: int, *values: Any) -> None:
        kernel = attention_kernel(cache.dtype, group, cache.head_dim, self.device.arch)
        self.launch(kernel, (runs, cache.kv_heads, splits), *values)


def gemm_shape(tokens: int, rows: int, along: int, device: Device, grouped: bool) -> tuple[int, int, int]:
    """Rows of tiles and tokens of a program, and splits of the columns: enough programs for every processor."""
    processors, most = device.processors, 128 if device.arch >= 90 else 64  # or there are too few registers
    if not grouped and tiles.count(rows, 4 * tiles.ROWS) * tiles.count(tokens, most) >= processors:
        return 4, most, 1
    width = 16 if tokens <= 16 or grouped else 32 if tokens <= 32 else 64
    programs = tiles.count(rows, tiles.ROWS) * tiles.count(tokens, width)
    return 1, width, max(1, min(tiles.count(processors, programs), along // 8))


GEMM_TYPES = ("*i8", "*fp32", "*u8", "*fp32", "*fp32", "*fp32", "i32", "i32", "i32", "i32")


def gemm_kernel(down: int, width: int, split: bool, grouped: bool, residual: bool) -> TritonKernel:
    types = (*GEMM_TYPES[:5], "*i32", *GEMM_TYPES[6:]) if split else GEMM_TYPES
    constants = {
        "DOWN": down,
        "TOKENS": width,
        "SPLIT": split,
        "GROUPED": grouped,
        "RESIDUAL": residual and not split,
    }
    return TritonKernel("ternary_gemm", types, tuple(constants.items()), 8 if down > 1 else 4)


def dense_kernel(dtype: str, even: bool, most: int = 0) -> TritonKernel:
    """even: whether every row begins at a multiple of 16 columns, so that it can be read in runs. most: as `MOST`."""
    types = ("*fp32", POINTERS[dtype], "*fp32", "i32", "i32", "i32:16" if even else "i32", "*i32", "*i32")
    shape = {"ROWS_": DENSE_ROWS, "COLUMNS": 32, "TOKENS": DENSE_TOKENS}
    constants = {**shape, "WIDE": dtype == "F32", "MOST": most}
    return TritonKernel("dense_gemm", types, tuple(constants.items()))


def attention_kernel(dtype: str, group: int, head_dim: int, arch: int) -> TritonKernel:
    stored = {"f32": "*fp32", "f16": "*fp16", "int8": "*i8"}[dtype]
    places = ("*fp32", stored, stored, "*fp32", "*fp32", "*i32", "*i32", "*i32")
    size = "i32:16" if head_dim % 16 == 0 else "i32"
    types = (*places, "i32", "i32:16", "i32", "i32", "fp32", "i32", "*fp32", "*fp32", "*fp32", size)
    dim, wide = max(16, tiles.power_of_two(head_dim)), tiles.power_of_two(group)
    constants = {
        "GROUP": group,
        "GROUP_": wide,
        "DIM": dim,
        "WIDTH": WIDTH,
        "STEP": attention_step(dtype, dim, arch),
        "QUERIES": max(QUERIES, wide),
        "TYPE": dtype,
    }
    return TritonKernel("attention_splits", types, tuple(constants.items()), 4 if arch >= 90 else 8, 2)


def attention_step(dtype: str, dim: int, arch: int) -> int:
    """Positions at once: what of keys, values and queries lies in shared memory must fit."""
    large = arch in (80, 90, 100, 103)  # cards that have at least 163 KiB
    return 64 if large and dim <= 128 and dtype != "f32" else 32 if dim <= 128 else 16
