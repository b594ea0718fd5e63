"""Weights as they travel from a file to a backend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ShapeError
from bitnet.quant.blocks import BLOCKS, decode

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TernaryTensor:
    """A matrix whose entries are a scale times -1, 0 or +1.

    codes: int8 (n, k), each in {-1, 0, 1}; n outputs, k inputs.
    scales: float32 of shape () for one scale per tensor, (n,) per row, (n, k // group) per group of columns.
    """

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def __post_init__(self) -> None:
        n, k = self.codes.shape
        if self.scales.shape not in ((), (n,)) and not (
            self.scales.ndim == 2
            and self.scales.shape[0] == n
            and self.scales.shape[1]
            and k % self.scales.shape[1] == 0
        ):
            raise ShapeError(f"scales are {self.scales.shape}; a ternary ({n}, {k}) takes (), ({n},) or ({n}, groups).")

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.codes.shape
        return n, k

    @property
    def group(self) -> int:
        """Columns that share a scale; 0 when one scale serves the whole row."""
        return self.codes.shape[1] // self.scales.shape[1] if self.scales.ndim == 2 else 0

    def dequantize(self) -> NDArray[np.float32]:
        """The float32 matrix (n, k) that this stands for."""
        scales = self.scales
        if scales.ndim == 2:
            scales = np.repeat(scales, self.group, axis=1)
        elif scales.ndim == 1:
            scales = scales[:, None]
        return self.codes.astype(np.float32) * scales


@dataclass(frozen=True, slots=True)
class DenseTensor:
    """A float tensor in its stored precision.

    data: for F32 and F16 an array of that type; for BF16 the uint16 bit patterns; for Q8_0 int8 of the tensor's shape;
    for a type of quant/blocks.py its rows of bytes (..., k // weights * nbytes).
    dtype: "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "Q3_K", "Q4_K", "Q5_K" or "Q6_K".
    scales: for Q8_0 float16 (..., k // 32); otherwise None.
    """

    data: Array
    dtype: str = "F32"
    scales: NDArray[np.float16] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        if self.dtype not in BLOCKS:
            return self.data.shape
        kind = BLOCKS[self.dtype]
        return (*self.data.shape[:-1], self.data.shape[-1] // kind.nbytes * kind.weights)

    def dequantize(self) -> NDArray[np.float32]:
        """The values as float32, in the tensor's shape."""
        return self.rows(slice(None))

    def rows(self, index: Any) -> NDArray[np.float32]:
        """The rows `index` (an array of integers or a slice) as float32."""
        data = self.data[index]
        if self.dtype in BLOCKS:
            return decode(self.dtype, data)
        if self.dtype == "BF16":
            return (data.astype(np.uint32) << 16).view(np.float32)
        if self.scales is not None:
            return data.astype(np.float32) * np.repeat(self.scales[index].astype(np.float32), 32, axis=-1)
        return data.astype(np.float32)


Tensor = TernaryTensor | DenseTensor


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    """Some rows of a matrix, or some elements of a vector, as a tensor of the same kind; no values are copied."""
    if isinstance(tensor, TernaryTensor):
        scales = tensor.scales[rows] if tensor.scales.ndim else tensor.scales
        return TernaryTensor(tensor.codes[rows], scales)
    return DenseTensor(tensor.data[rows], tensor.dtype, None if tensor.scales is None else tensor.scales[rows])
