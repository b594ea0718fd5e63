"""Ternary weights in the layout that the kernels read, made with NumPy: compiling needs nothing of the target."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitnet.quant.tensor import TernaryTensor
from bitnet.tensorir.ternary import BYTES, COLUMNS, FIELDS, ROWS, Shape


def shape_of(tensor: TernaryTensor) -> Shape:
    return Shape(*tensor.shape, tensor.group, tensor.scales.ndim == 1)


def packed(tensor: TernaryTensor) -> NDArray[np.uint8]:
    """(row groups, blocks * 64); rows and columns that only pad hold zeros."""
    shape = shape_of(tensor)
    out = np.empty((shape.row_groups, shape.blocks * BYTES), np.uint8)
    for group in range(shape.row_groups):  # one at a time: codes take four times the memory
        codes = np.zeros((ROWS, shape.padded), np.int8)
        rows = tensor.codes[group * ROWS : (group + 1) * ROWS]
        codes[: len(rows), : shape.k] = rows
        fields = (codes + 1).view(np.uint8).reshape(ROWS, shape.blocks, FIELDS, COLUMNS // FIELDS)
        block = np.zeros((shape.blocks, ROWS, COLUMNS // FIELDS), np.uint8)
        for field in range(FIELDS):
            block |= fields[:, :, field].transpose(1, 0, 2) << np.uint8(2 * field)
        out[group] = block.reshape(-1)
    return out


def scales(tensor: TernaryTensor) -> NDArray[np.float32]:
    """In the shape that Shape.scales says."""
    shape, given = shape_of(tensor), np.asarray(tensor.scales, np.float32)
    if not given.ndim:
        return given.reshape(1)
    padded = np.zeros((shape.row_groups * ROWS, *given.shape[1:]), np.float32)
    padded[: shape.n] = given
    if given.ndim == 1:
        return padded
    return np.ascontiguousarray(padded.reshape(shape.row_groups, ROWS, -1).transpose(0, 2, 1))
