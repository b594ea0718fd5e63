"""Ternary codes as files pack them, to and from int8 arrays of -1, 0, +1.

Every layout but Q1_0, which has no zeros, stores w + 1. In the 2-bit layouts the code 3 means nothing (in Q2_0, +2), so
it is refused, not guessed. The work goes in chunks that stay in the processor's cache: about 2e9 weights a second on
one core for the types that whole models are stored in.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, ParameterError, UnsupportedError

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]

_CHUNK = 1 << 18  # packed bytes at a time
_I2_S = (6, 4, 2, 0)  # shifts of the weights 0..31, 32..63, 64..95, 96..127 of a block
_TQ2_0 = (0, 2, 4, 6)

# A byte of five trits is the fraction 0.t0 t1 t2 t3 t4 (base 3) times 256, rounded up. A block has parts of such bytes,
# (from byte, to byte, trits a byte); trit n of all bytes of a part comes before trit n + 1.
_Parts = tuple[tuple[int, int, int], ...]
_TQ1_0: _Parts = ((0, 32, 5), (32, 48, 5), (48, 52, 4))  # 256 weights
_PTQ1_0: _Parts = ((0, 16, 5), (16, 24, 5), (24, 26, 4))  # 128 weights
_POWERS = np.array([81, 27, 9, 3, 1], np.uint16)

# The four codes of every byte, lowest bits first, as one item.
_FOUR = (np.arange(256)[:, None] >> np.array(_TQ2_0) & 3).astype(np.int8)
_FOUR = (_FOUR - np.int8(1)).view(np.uint32).reshape(-1)


def unpack_i2_s(data: Bytes) -> Codes:
    """I2_S: weight j of 128 in byte j % 32 of 32, highest bits first."""
    return _unpack_bits(data, _I2_S)


def pack_i2_s(codes: Codes) -> Bytes:
    return _pack_bits(codes, _I2_S)


def unpack_tq2_0(data: Bytes) -> Codes:
    """TQ2_0 without its scales: weight j of 128 in byte j % 32 of 32, lowest bits first."""
    return _unpack_bits(data.reshape(-1), _TQ2_0)


def pack_tq2_0(codes: Codes) -> Bytes:
    return _pack_bits(codes, _TQ2_0)


def unpack_rows(data: Bytes) -> Codes:
    """Hugging Face packing: byte (r, c) of (n / 4, k) holds in its bits 2i, 2i + 1 the code at (r + i n / 4, c)."""
    quarter, k = data.shape
    codes = np.empty((4, quarter * k), np.int8)
    flat = data.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        _refuse_three(chunk)
        for i in range(4):
            part = chunk >> np.uint8(2 * i)
            part &= 3
            np.subtract(part.view(np.int8), 1, out=codes[i, start : start + _CHUNK])
    return codes.reshape(4 * quarter, k)


def unpack_quarter(data: Bytes, i: int) -> Codes:
    """Some rows of bytes (m, k) as the codes (m, k) in their bits 2i, 2i + 1: see unpack_rows."""
    _refuse_three(data)
    codes = (data >> np.uint8(2 * i) & np.uint8(3)).view(np.int8)
    codes -= 1
    return codes


def pack_rows(codes: Codes) -> Bytes:
    """The inverse of unpack_rows; n must be a multiple of 4."""
    n, k = codes.shape
    parts = (codes + np.int8(1)).view(np.uint8).reshape(4, n // 4, k)
    packed: Bytes = parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6
    return packed


def unpack_tq1_0(data: Bytes) -> Codes:
    """TQ1_0 without its scales: (blocks, 52) bytes to (blocks, 256) codes."""
    return _unpack_parts(data, _TQ1_0)


def pack_tq1_0(codes: Codes) -> Bytes:
    """(blocks, 256) codes to (blocks, 52) bytes."""
    return _pack_parts(codes, _TQ1_0)


def unpack_ptq1_0(data: Bytes) -> Codes:
    """PTQ1_0 without its scales: (blocks, 26) bytes to (blocks, 128) codes."""
    return _unpack_parts(data, _PTQ1_0)


def pack_ptq1_0(codes: Codes) -> Bytes:
    return _pack_parts(codes, _PTQ1_0)


def unpack_q1_0(data: Bytes) -> Codes:
    """Q1_0 without its scales: weight j is +1 where bit j % 8 of byte j / 8 is set, else -1."""
    codes = np.unpackbits(data.reshape(-1), bitorder="little").view(np.int8)
    codes <<= 1
    codes -= 1
    return codes


def pack_q1_0(codes: Codes) -> Bytes:
    if not codes.all():
        raise ParameterError("Q1_0 stores -1 and +1 only; this tensor holds zeros.", "Choose Q2_0 or PTQ1_0.")
    return np.packbits(codes.reshape(-1) > 0, bitorder="little")


def unpack_q2_0(data: Bytes) -> Codes:
    """Q2_0 and PQ2_0 without their scales: weight j in byte j / 4, at bits 2 (j % 4)."""
    try:
        return _four_a_byte(data)
    except FormatError:
        raise UnsupportedError(
            "holds the code 3, which means +2: it is not ternary.", "Take a file whose weights are -1, 0 and +1."
        ) from None


def pack_q2_0(codes: Codes) -> Bytes:
    parts = (codes.reshape(-1, 4) + np.int8(1)).view(np.uint8)
    packed: Bytes = parts[:, 0] | parts[:, 1] << 2 | parts[:, 2] << 4 | parts[:, 3] << 6
    return packed


# IQ1_BN: a block of 64 is four runs of 16; three bytes hold the first 15 weights of a run, in order, and the 13th byte
# of the block the last weight of each.


def unpack_iq1_bn(data: Bytes) -> Codes:
    """IQ1_BN without its scales: (blocks, 13) bytes to (blocks, 64) codes."""
    codes = np.empty((len(data), 4, 16), np.int8)
    step = _CHUNK // 13
    for start in range(0, len(data), step):
        trits = np.stack(list(_trits(data[start : start + step], 5)), axis=2)  # (blocks, 13, 5)
        codes[start : start + step, :, :15] = trits[:, :12].reshape(-1, 4, 15)
        codes[start : start + step, :, 15] = trits[:, 12, :4]
    return codes.reshape(-1, 64)


def pack_iq1_bn(codes: Codes) -> Bytes:
    runs = (codes.reshape(-1, 4, 16) + np.int8(1)).astype(np.uint16)
    numbers = np.empty((len(runs), 13), np.uint16)
    numbers[:, :12] = runs[:, :, :15].reshape(-1, 12, 5) @ _POWERS
    numbers[:, 12] = runs[:, :, 15] @ _POWERS[:4]
    return _fractions(numbers)


def unpack_iq2_bn(data: Bytes) -> Codes:
    """IQ2_BN without its scales: weight j of 64 in byte j % 16 of 16, lowest bits first."""
    return _unpack_bits(data.reshape(-1), _TQ2_0, 16)


def pack_iq2_bn(codes: Codes) -> Bytes:
    return _pack_bits(codes, _TQ2_0, 16)


def unpack_iq2_bn_r4(data: Bytes) -> Codes:
    """IQ2_BN_R4 without its scales: (quadruples, k) bytes of four rows each to codes (4 * quadruples, k).

    Weight 16 p + 4 q + i of 64 of row r is in byte 16 p + 4 r + i of 64, at bits 2 q.
    """
    quadruples, k = data.shape
    weights = _four_a_byte(data).reshape(quadruples, k // 64, 4, 4, 4, 4)  # [.., block, p, r, i, q]
    return np.ascontiguousarray(weights.transpose(0, 3, 1, 2, 5, 4)).reshape(4 * quadruples, k)


def _four_a_byte(data: Bytes) -> Codes:
    """The four codes of every byte, lowest bits first."""
    flat = data.reshape(-1)
    codes = np.empty(flat.size, np.uint32)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        _refuse_three(chunk)
        codes[start : start + _CHUNK] = _FOUR[chunk]
    return codes.view(np.int8)


def _unpack_parts(data: Bytes, parts: _Parts) -> Codes:
    codes = np.empty((len(data), sum((last - first) * count for first, last, count in parts)), np.int8)
    step = _CHUNK // data.shape[1]
    for start in range(0, len(data), step):
        at = 0
        for first, last, count in parts:
            for trit in _trits(data[start : start + step, first:last], count):
                codes[start : start + step, at : at + last - first] = trit
                at += last - first
    return codes


def _pack_parts(codes: Codes, parts: _Parts) -> Bytes:
    data = np.empty((len(codes), parts[-1][1]), np.uint8)
    step = _CHUNK // codes.shape[1]
    for start in range(0, len(codes), step):
        trits = (codes[start : start + step] + np.int8(1)).astype(np.uint16)
        at = 0
        for first, last, count in parts:
            width = last - first
            number = np.zeros((len(trits), width), np.uint16)
            for power in _POWERS[:count]:
                number += trits[:, at : at + width] * power
                at += width
            data[start : start + step, first:last] = _fractions(number)
    return data


def _trits(fraction: Bytes, count: int) -> Iterator[Codes]:
    """The leading `count` trits of every byte, as -1, 0, +1."""
    fraction = fraction.copy()
    for _ in range(count):
        # The leading trit of q / 256 is (3 q) >> 8: 1 from q = 86 on, 2 from q = 171 on.
        code = (fraction >= 86).view(np.int8) + (fraction >= 171).view(np.int8)
        code -= 1
        yield code
        fraction *= 3  # modulo 256: drops the leading trit


def _fractions(numbers: NDArray[np.uint16]) -> Bytes:
    """Numbers of five trits as fractions of 256, rounded up."""
    return ((numbers * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8)


def _unpack_bits(data: Bytes, shifts: tuple[int, ...], width: int = 32) -> Codes:
    """Blocks of `width` bytes to blocks of 4 x width codes; group g of a block is in the two bits at shifts[g]."""
    item = f"V{width}"  # so many codes move as one item
    codes = np.empty((data.size // width, 4), item)
    for start in range(0, data.size, _CHUNK):
        words = data[start : start + _CHUNK].view(np.uint64)
        _refuse_three(words)
        block = codes[start // width : (start + _CHUNK) // width]
        for group, shift in enumerate(shifts):
            part = words >> np.uint64(shift)
            part &= np.uint64(0x0303030303030303)
            weights = part.view(np.int8)
            weights -= 1
            block[:, group] = weights.view(item)
    return codes.view(np.int8).reshape(-1)


def _pack_bits(codes: Codes, shifts: tuple[int, ...], width: int = 32) -> Bytes:
    blocks = np.ascontiguousarray(codes).reshape(-1).view(f"V{width}").reshape(-1, 4)
    data = np.zeros(len(blocks) * width, np.uint8)
    for start in range(0, data.size, _CHUNK):
        words = data[start : start + _CHUNK].view(np.uint64)
        block = blocks[start // width : (start + _CHUNK) // width]
        for group, shift in enumerate(shifts):
            part = block[:, group].copy().view(np.int8)
            part += 1
            words |= part.view(np.uint64) << np.uint64(shift)
    return data


def _refuse_three(packed: NDArray[np.unsignedinteger]) -> None:
    """Raise where a pair of bits is 11: that is where the word and itself shifted by one share a low bit."""
    low = packed.dtype.type(int("55" * packed.itemsize, 16))
    both = packed >> packed.dtype.type(1)
    both &= packed
    both &= low
    if both.any():
        raise FormatError("holds the ternary code 3; only 0, 1 and 2 (for -1, 0, +1) exist.")
