"""One GGUF tensor: its bytes to a Tensor and back, for every readable type.

Errors come without the tensor's name; the reader and the writer put it in front.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, ParameterError, UnsupportedError
from bitnet.formats import floats, trits
from bitnet.formats.gguf_types import BY_NAME
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Shape = tuple[int, ...]

_UNPACK_TQ = {"TQ1_0": trits.unpack_tq1_0, "TQ2_0": trits.unpack_tq2_0}
_PACK_TQ = {"TQ1_0": trits.pack_tq1_0, "TQ2_0": trits.pack_tq2_0}


def decode(data: Bytes, shape: Shape, dtype: str) -> Tensor:
    """The tensor whose file bytes are `data`. Raises FormatError where a code or a scale is not valid."""
    if dtype in floats.PLAIN:
        return floats.decode_plain(data, shape, dtype)
    if dtype == "Q8_0":
        return floats.decode_q8_0(data, shape)
    return _decode_i2_s(data, shape) if dtype == "I2_S" else _decode_tq(data, shape, dtype)


def encode(tensor: Tensor, dtype: str) -> Bytes:
    """The file bytes of `tensor` as `dtype`.

    Ternary codes are always exact. F16, BF16 and Q8_0 round the values; TQ1_0 and TQ2_0 store their scales as float16,
    so a scale of 0.1 comes back as 0.09998; I2_S keeps the float32 scale.
    """
    if not BY_NAME[dtype].divides(tensor.shape):
        what = "tensors" if BY_NAME[dtype].flat else "rows"
        raise ParameterError(
            f"{dtype} stores {what} in blocks of {BY_NAME[dtype].block} weights; {tensor.shape} does not divide.",
            "Choose I2_S for ternary tensors (any row length), F16 for others.",
        )
    if dtype in floats.PLAIN:
        return floats.encode_plain(tensor, dtype)
    if dtype == "Q8_0":
        return floats.encode_q8_0(tensor)
    if not isinstance(tensor, TernaryTensor):
        raise ParameterError(f"{dtype} stores ternary tensors; this one is {tensor.dtype}.", "Ternarise it first.")
    return _encode_i2_s(tensor) if dtype == "I2_S" else _encode_tq(tensor, dtype)


# I2_S: all codes, then one float32 scale and 28 bytes of padding.


def _decode_i2_s(data: Bytes, shape: Shape) -> Tensor:
    packed = prod(shape) // 4
    scale = data[packed : packed + 4].view("<f4")[0]
    if not np.isfinite(scale):
        raise FormatError(f"has the scale {scale}; a finite number was expected.")
    return _ternary(trits.unpack_i2_s(data[:packed]), np.asarray(scale, np.float32), shape)


def _encode_i2_s(tensor: TernaryTensor) -> Bytes:
    if tensor.scales.shape != ():
        raise ParameterError(
            f"I2_S has one scale per tensor; this one has scales {tensor.scales.shape}.", "Choose TQ2_0, TQ1_0 or F16."
        )
    trailer = np.zeros(8, "<f4")
    trailer[0] = tensor.scales
    return np.concatenate([trits.pack_i2_s(tensor.codes), trailer.view(np.uint8)])


# TQ1_0, TQ2_0: blocks of 256 weights along a row, the codes first and a float16 scale behind them.


def _tq_block(dtype: str) -> np.dtype[np.void]:
    return np.dtype([("codes", "u1", BY_NAME[dtype].nbytes - 2), ("scale", "<f2")])


def _decode_tq(data: Bytes, shape: Shape, dtype: str) -> Tensor:
    blocks = data.view(_tq_block(dtype))
    codes = _UNPACK_TQ[dtype](np.ascontiguousarray(blocks["codes"])).reshape(-1, shape[-1])
    scales = blocks["scale"].astype(np.float32).reshape(len(codes), -1)  # (n, k // 256)
    if not np.isfinite(scales).all():
        raise FormatError("has a block whose scale is not a finite number.")
    return _ternary(codes, _fold_scales(scales, codes), shape)


def _fold_scales(scales: Floats, codes: NDArray[np.int8]) -> Floats:
    """One scale for the tensor where all blocks agree, else one a row, else one a block.

    A block without weights agrees with any scale: writers that take d = max|w| store 0 there.
    """
    if (scales == scales[0, 0]).all():
        return np.asarray(scales[0, 0])
    empty = ~codes.reshape(*scales.shape, 256).any(axis=2)
    for axis in (None, 1):
        low = np.where(empty, np.inf, scales).min(axis=axis)
        high = np.where(empty, -np.inf, scales).max(axis=axis)
        if np.all(low >= high):  # low > high where there is no weight at all, hence no scale
            return np.where(low == high, high, 0).astype(np.float32)
    return scales


def _encode_tq(tensor: TernaryTensor, dtype: str) -> Bytes:
    blocks = np.empty(tensor.codes.size // 256, _tq_block(dtype))
    blocks["codes"] = _PACK_TQ[dtype](tensor.codes.reshape(-1, 256)).reshape(len(blocks), -1)
    blocks["scale"] = _half(_block_scales(tensor)).reshape(-1)
    return blocks.view(np.uint8)


def _block_scales(tensor: TernaryTensor) -> Floats:
    """The scale of every block, (n, k // 256)."""
    n, k = tensor.shape
    if tensor.scales.ndim < 2:
        return np.broadcast_to(tensor.scales.reshape(-1, 1), (n, k // 256))
    if tensor.group % 256:
        raise ParameterError(f"TQ1_0 and TQ2_0 have a scale per 256 weights; this tensor has one per {tensor.group}.")
    return np.repeat(tensor.scales, tensor.group // 256, axis=1)


def _half(scales: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not np.isfinite(half).all() or ((half == 0) & (scales != 0)).any():
        raise ParameterError(
            f"scales from {scales.min():g} to {scales.max():g} do not fit into float16.", "Choose I2_S or F32."
        )
    return half


def _ternary(codes: NDArray[np.int8], scales: Floats, shape: Shape) -> Tensor:
    """A matrix stays ternary; a vector, which no product reads, comes back as float32."""
    if len(shape) > 2:
        raise UnsupportedError(f"is ternary and has the shape {shape}; only matrices are supported.")
    ternary = TernaryTensor(codes.reshape(-1, shape[-1]), scales)
    return ternary if len(shape) == 2 else DenseTensor(ternary.dequantize().reshape(shape))
