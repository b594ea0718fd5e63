"""Weights as the GPU keeps them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitnet.backends.cuda import tiles
from bitnet.backends.cuda.device import Array, Device
from bitnet.errors import UnsupportedError
from bitnet.quant.tensor import DenseTensor, TernaryTensor

DENSE = {"F32": 0, "F16": 1, "BF16": 2}  # as common.cuh numbers them


@dataclass(frozen=True, slots=True, eq=False)
class TernaryMatrix:
    """tiles: tiles.py. scales: float32 (n,), or (n, k // group)."""

    shape: tuple[int, int]
    tiles: Array
    scales: Array
    group: int

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes + self.scales.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class Screen:
    """An int8 copy of a matrix, as screen.cu has it. measures: scale and norms of each row, (n, 3)."""

    codes: Array
    measures: Array


@dataclass(slots=True, eq=False)
class DenseMatrix:
    """dtype: a key of DENSE. data: (n, k); bfloat16 as uint16."""

    shape: tuple[int, int]
    dtype: str
    data: Array
    screen: Screen | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def screen_nbytes(self) -> int:
        return self.screen.codes.nbytes + self.screen.measures.nbytes if self.screen else 0


Matrix = TernaryMatrix | DenseMatrix


def put_ternary(device: Device, tensor: TernaryTensor) -> TernaryMatrix:
    n, k = tensor.shape
    if k > tiles.MOST_COLUMNS:
        raise UnsupportedError(f"A ternary matrix has {k} columns; the GPU takes {tiles.MOST_COLUMNS}.")
    if tensor.group % tiles.COLUMNS:
        raise UnsupportedError(
            f"A ternary matrix has a scale for {tensor.group} columns; the GPU takes multiples of {tiles.COLUMNS}.",
            "Run this model on the CPU.",
        )
    scales = tensor.scales if tensor.group else np.broadcast_to(tensor.scales, (n,))
    packed = device.put(tiles.pack(tensor.codes))
    return TernaryMatrix((n, k), packed, device.put(np.ascontiguousarray(scales, np.float32)), tensor.group)


def put_dense(device: Device, tensor: DenseTensor) -> DenseMatrix:
    """As stored where that is a float; other types as float16 where this is the same numbers, else as float32."""
    n, k = tensor.shape
    if tensor.dtype in DENSE:
        return DenseMatrix((n, k), tensor.dtype, device.put(tensor.data))
    values = tensor.dequantize()
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    same = np.array_equal(halves, values)
    return DenseMatrix((n, k), "F16" if same else "F32", device.put(halves if same else values))
