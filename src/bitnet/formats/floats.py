"""Float types: a tensor's bytes to a DenseTensor, and any tensor's values to such bytes.

Errors come without the tensor's name; the reader and the writer put it in front.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, ParameterError
from bitnet.quant import block_encoders
from bitnet.quant.blocks import BLOCKS
from bitnet.quant.tensor import Array, DenseTensor, Tensor, TernaryTensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_Q8_0 = np.dtype([("scale", "<f2"), ("codes", "i1", 32)])  # 32 weights of a row
_ROWS_BYTES = 1 << 22  # float32 values at a time: a whole embedding as float32 would take gigabytes


def decode_plain(data: Bytes, shape: tuple[int, ...], dtype: str) -> DenseTensor:
    return DenseTensor(data.view(PLAIN[dtype]).reshape(shape), dtype)


def encode_plain(tensor: Tensor, dtype: str) -> Bytes:
    """The values rounded to `dtype`; those that are in it already are not touched."""
    if isinstance(tensor, DenseTensor) and tensor.dtype == dtype:
        return _bytes(tensor.data.astype(PLAIN[dtype], copy=False))
    data = np.empty(tensor.shape, PLAIN[dtype])
    into = data.reshape(-1, tensor.shape[-1])
    for rows, values in _float_rows(tensor):
        into[rows] = _to_bf16(values) if dtype == "BF16" else _to_float(values, dtype)
    return _bytes(data)


def decode_q8_0(data: Bytes, shape: tuple[int, ...]) -> DenseTensor:
    blocks = data.view(_Q8_0)
    scales = np.ascontiguousarray(blocks["scale"]).reshape(*shape[:-1], shape[-1] // 32)
    if not np.isfinite(scales).all():
        raise FormatError("has a block whose scale is not a finite number.")
    return DenseTensor(np.ascontiguousarray(blocks["codes"]).reshape(shape), "Q8_0", scales)


def decode_blocks(data: Bytes, shape: tuple[int, ...], dtype: str) -> DenseTensor:
    if not np.isfinite(BLOCKS[dtype].scales(data)).all():
        raise FormatError("has a block whose scale is not a finite number.")
    return DenseTensor(data.reshape(*shape[:-1], -1), dtype)


def encode_blocks(tensor: Tensor, dtype: str) -> Bytes:
    """The values as `dtype`, "Q4_K" or "Q6_K"; those that are in it already are not touched."""
    if isinstance(tensor, DenseTensor) and tensor.dtype == dtype:
        return _bytes(tensor.data)
    if dtype not in block_encoders.ENCODERS:
        raise ParameterError(
            f"{dtype} is only passed on; this tensor is {_dtype(tensor)}.", "Choose Q4_K, Q6_K or F16."
        )
    kind = BLOCKS[dtype]
    data = np.empty(prod(tensor.shape) // kind.weights * kind.nbytes, np.uint8)
    into = data.reshape(prod(tensor.shape[:-1]), -1)
    for rows, values in _float_rows(tensor):
        into[rows] = block_encoders.encode(dtype, values)
    return data


def encode_q8_0(tensor: Tensor) -> Bytes:
    blocks = np.empty(prod(tensor.shape) // 32, _Q8_0)
    if isinstance(tensor, DenseTensor) and tensor.dtype == "Q8_0" and tensor.scales is not None:
        blocks["codes"], blocks["scale"] = tensor.data.reshape(-1, 32), tensor.scales.reshape(-1)
        return _bytes(blocks)
    into = blocks.reshape(-1, tensor.shape[-1] // 32)
    for rows, values in _float_rows(tensor):
        scale, codes = _quantize_q8_0(values.reshape(-1, 32))
        into["scale"][rows] = scale.reshape(len(values), -1)
        into["codes"][rows] = codes.reshape(len(values), -1, 32)
    return _bytes(blocks)


def _quantize_q8_0(values: Floats) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """As ggml does: d = max|v| / 127, codes rounded half away from zero with the float32 d, d stored as float16."""
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        half = scale[:, 0].astype(np.float16)
    if not np.isfinite(half).all():
        raise ParameterError("Q8_0 cannot store values that are not finite or beyond 127 * 65504.")
    scaled = values * inverse
    return half, np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)


def _dtype(tensor: Tensor) -> str:
    return tensor.dtype if isinstance(tensor, DenseTensor) else "ternary"


def _float_rows(tensor: Tensor) -> Iterator[tuple[slice, Floats]]:
    """The values as float32, a few rows of the last axis at a time."""
    k = tensor.shape[-1]
    step = max(1, _ROWS_BYTES // (4 * k))
    for start in range(0, prod(tensor.shape) // k, step):
        rows = slice(start, start + step)
        yield rows, _rows(tensor, rows).dequantize().reshape(-1, k)


def _rows(tensor: Tensor, rows: slice) -> Tensor:
    k = tensor.shape[-1]
    if isinstance(tensor, TernaryTensor):
        return TernaryTensor(tensor.codes[rows], tensor.scales[rows] if tensor.scales.ndim else tensor.scales)
    scales = None if tensor.scales is None else tensor.scales.reshape(-1, k // 32)[rows]
    return DenseTensor(tensor.data.reshape(-1, tensor.data.shape[-1])[rows], tensor.dtype, scales)


def _to_float(values: Floats, dtype: str) -> Array:
    with np.errstate(over="ignore"):
        rounded: Array = values.astype(PLAIN[dtype])
    if np.isinf(rounded).any() and not np.isinf(values).any():
        raise ParameterError("F16 cannot store values beyond 65504.", "Choose BF16 or F32.")
    return rounded


def _to_bf16(values: Floats) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded to nearest, ties to even; a NaN stays a NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    upper, lowest = bits >> np.uint32(16), bits >> np.uint32(16) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + lowest) >> np.uint32(16)
    return np.where(np.isnan(values), upper | np.uint32(0x40), rounded).astype(np.uint16)


def _bytes(array: Array) -> Bytes:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
