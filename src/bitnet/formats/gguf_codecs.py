"""One GGUF tensor: its bytes to a Tensor and back, for every readable type.

Errors come without the tensor's name; the reader and the writer put it in front.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, ParameterError, UnsupportedError
from bitnet.formats import floats, tile_codes, trits
from bitnet.formats.gguf_types import BY_NAME
from bitnet.quant.blocks import BLOCKS
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Codes = NDArray[np.int8]
Shape = tuple[int, ...]

# How a type packs its codes, a block of them in a row of bytes; `first`: the scale stands before them.
_Packing = tuple[Callable[[Bytes], Codes], Callable[[Codes], Bytes], bool]
_SCALED_BLOCKS: dict[str, _Packing] = {
    "TQ1_0": (trits.unpack_tq1_0, trits.pack_tq1_0, False),
    "TQ2_0": (trits.unpack_tq2_0, trits.pack_tq2_0, False),
    "Q1_0": (trits.unpack_q1_0, trits.pack_q1_0, True),
    "Q2_0": (trits.unpack_q2_0, trits.pack_q2_0, True),
    "PQ2_0": (trits.unpack_q2_0, trits.pack_q2_0, True),
    "PTQ1_0": (trits.unpack_ptq1_0, trits.pack_ptq1_0, False),
}
_SCALED_ROWS = {
    "IQ1_BN": (trits.unpack_iq1_bn, trits.pack_iq1_bn),
    "IQ2_BN": (trits.unpack_iq2_bn, trits.pack_iq2_bn),
}


def decode(data: Bytes, shape: Shape, dtype: str) -> Tensor:
    """The tensor whose file bytes are `data`. Raises FormatError where a code or a scale is not valid."""
    if dtype in floats.PLAIN:
        return floats.decode_plain(data, shape, dtype)
    if dtype == "Q8_0":
        return floats.decode_q8_0(data, shape)
    if dtype in BLOCKS:
        return floats.decode_blocks(data, shape, dtype)
    if len(shape) > 2:
        raise UnsupportedError(f"is ternary and has the shape {shape}; only matrices are supported.")
    ternary = TernaryTensor(*_decode_ternary(data, (prod(shape[:-1]), shape[-1]), dtype))
    # A vector, which no product reads, becomes float32.
    return ternary if len(shape) == 2 else DenseTensor(ternary.dequantize().reshape(shape))


def scale_place(shape: Shape, dtype: str) -> tuple[int, str] | None:
    """Byte and NumPy type of the first scale, for the types that a backend may take from the file; None for others."""
    if dtype == "I2_S":
        return prod(shape) // 4, "<f4"
    return (BY_NAME[dtype].nbytes - 2, "<f2") if dtype in ("TQ1_0", "TQ2_0") else None


def encode(tensor: Tensor, dtype: str) -> Bytes:
    """The file bytes of `tensor` as `dtype`.

    Ternary codes are always exact. The float types but F32 round the values; the ternary ones store their scales as
    float16, so a scale of 0.1 comes back as 0.09998, except I2_S and IQ2_BN, which keep float32.
    """
    kind = BY_NAME[dtype]
    if not kind.divides(tensor.shape):
        raise ParameterError(
            f"{dtype} stores {kind.rule}; {tensor.shape} does not divide.",
            "Choose I2_S for ternary tensors (any row length), F16 for others.",
        )
    if dtype in floats.PLAIN:
        return floats.encode_plain(tensor, dtype)
    if dtype == "Q8_0":
        return floats.encode_q8_0(tensor)
    if dtype in BLOCKS:
        return floats.encode_blocks(tensor, dtype)
    if not isinstance(tensor, TernaryTensor):
        raise ParameterError(f"{dtype} stores ternary tensors; this one is {tensor.dtype}.", "Ternarise it first.")
    if dtype == "I2_S":
        return _encode_i2_s(tensor)
    return _encode_rows(tensor, dtype) if dtype in _SCALED_ROWS else _encode_blocks(tensor, dtype)


def _decode_ternary(data: Bytes, shape: tuple[int, int], dtype: str) -> tuple[Codes, Floats]:
    """Codes (n, k) and their scales, as few as say the same."""
    if dtype == "I2_S":
        return _decode_i2_s(data, shape)
    if dtype in ("TL1", "TL2"):
        return tile_codes.unpack(data[:-4], dtype, shape), _one_scale(data[-4:])
    if dtype in _SCALED_BLOCKS:
        codes, scales = _decode_blocks(data, shape, dtype)
    else:
        codes, scales = _decode_rows(data, shape, dtype)
    if not np.isfinite(scales).all():
        raise FormatError("has a block whose scale is not a finite number.")
    return codes, _fold_scales(scales, codes)


def _what_holds(tensor: TernaryTensor) -> str:
    """The types that store the scales of this tensor, for a refusal by another one."""
    group, rows = tensor.group or tensor.shape[1], tensor.scales.ndim == 1
    names = [name for name in _SCALED_BLOCKS if name != "Q1_0" and group % BY_NAME[name].block == 0]
    names += [name for name in _SCALED_ROWS if rows and BY_NAME[name].divides(tensor.shape)]
    return f"Its scales fit into {', '.join(names) or 'no ternary type'}, or the weights into F16 or F32."


# I2_S: all codes, then one float32 scale and 28 bytes of padding.


def _decode_i2_s(data: Bytes, shape: tuple[int, int]) -> tuple[Codes, Floats]:
    packed = prod(shape) // 4
    return trits.unpack_i2_s(data[:packed]).reshape(shape), _one_scale(data[packed : packed + 4])


def _one_scale(data: Bytes) -> Floats:
    scale = data.view("<f4")[0]
    if not np.isfinite(scale):
        raise FormatError(f"has the scale {scale}; a finite number was expected.")
    return np.asarray(scale, np.float32)


def _encode_i2_s(tensor: TernaryTensor) -> Bytes:
    if tensor.scales.shape != ():
        raise ParameterError(
            f"I2_S has one scale per tensor; this one has scales {tensor.scales.shape}.", _what_holds(tensor)
        )
    trailer = np.zeros(8, "<f4")
    trailer[0] = tensor.scales
    return np.concatenate([trits.pack_i2_s(tensor.codes), trailer.view(np.uint8)])


# Blocks of weights along a row, each with a float16 scale.


def _block(dtype: str) -> np.dtype[np.void]:
    fields = [("codes", "u1", BY_NAME[dtype].nbytes - 2), ("scale", "<f2")]
    return np.dtype(fields[::-1] if _SCALED_BLOCKS[dtype][2] else fields)


def _decode_blocks(data: Bytes, shape: tuple[int, int], dtype: str) -> tuple[Codes, Floats]:
    blocks = data.view(_block(dtype))
    codes = _SCALED_BLOCKS[dtype][0](np.ascontiguousarray(blocks["codes"])).reshape(shape)
    return codes, blocks["scale"].astype(np.float32).reshape(shape[0], -1)  # (n, k // block)


def _encode_blocks(tensor: TernaryTensor, dtype: str) -> Bytes:
    size = BY_NAME[dtype].block
    blocks = np.empty(tensor.codes.size // size, _block(dtype))
    blocks["codes"] = _SCALED_BLOCKS[dtype][1](tensor.codes.reshape(-1, size)).reshape(len(blocks), -1)
    blocks["scale"] = _half(_block_scales(tensor, dtype)).reshape(-1)
    return blocks.view(np.uint8)


def _block_scales(tensor: TernaryTensor, dtype: str) -> Floats:
    """The scale of every block, (n, k // block)."""
    (n, k), size = tensor.shape, BY_NAME[dtype].block
    if tensor.scales.ndim < 2:
        return np.broadcast_to(tensor.scales.reshape(-1, 1), (n, k // size))
    if tensor.group % size:
        raise ParameterError(
            f"{dtype} has a scale per {size} weights; this tensor has one per {tensor.group}.", _what_holds(tensor)
        )
    return np.repeat(tensor.scales, tensor.group // size, axis=1)


# A scale for each row, before its blocks; in IQ2_BN_R4 four rows share their bytes, and four scales come first.


def _row(dtype: str, k: int) -> np.dtype[np.void]:
    kind = BY_NAME[dtype]
    scale = ("scale", f"<f{kind.row_header}", kind.rows)
    return np.dtype([scale, ("codes", "u1", k // kind.block * kind.nbytes * kind.rows)])


def _decode_rows(data: Bytes, shape: tuple[int, int], dtype: str) -> tuple[Codes, Floats]:
    rows = data.view(_row(dtype, shape[1]))
    packed = np.ascontiguousarray(rows["codes"])
    if dtype == "IQ2_BN_R4":
        codes = trits.unpack_iq2_bn_r4(packed)
    else:
        codes = _SCALED_ROWS[dtype][0](packed.reshape(-1, BY_NAME[dtype].nbytes)).reshape(shape)
    return codes, rows["scale"].astype(np.float32).reshape(-1, 1)


def _encode_rows(tensor: TernaryTensor, dtype: str) -> Bytes:
    if tensor.group:
        raise ParameterError(
            f"{dtype} has a scale per row; this tensor has one per {tensor.group} weights.", _what_holds(tensor)
        )
    n, k = tensor.shape
    rows = np.empty(n, _row(dtype, k))
    rows["codes"] = _SCALED_ROWS[dtype][1](tensor.codes).reshape(n, -1)
    scales = np.broadcast_to(tensor.scales, n)
    rows["scale"] = (_half(scales) if dtype == "IQ1_BN" else scales).reshape(n, 1)
    return rows.view(np.uint8)


def _fold_scales(scales: Floats, codes: Codes) -> Floats:
    """One scale for the tensor where all blocks agree, else one a row, else one a block.

    A block without weights agrees with any scale: writers that take d = max|w| store 0 there.
    """
    if (scales == scales[0, 0]).all():
        return np.asarray(scales[0, 0])
    empty = ~codes.reshape(*scales.shape, -1).any(axis=2)
    for axis in (None, 1):
        low = np.where(empty, np.inf, scales).min(axis=axis)
        high = np.where(empty, -np.inf, scales).max(axis=axis)
        if np.all(low >= high):  # low > high where there is no weight at all, hence no scale
            return np.where(low == high, high, 0).astype(np.float32)
    return scales


def _half(scales: Floats) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not np.isfinite(half).all() or ((half == 0) & (scales != 0)).any():
        raise ParameterError(
            f"scales from {scales.min():g} to {scales.max():g} do not fit into float16.", "Choose I2_S or F32."
        )
    return half
