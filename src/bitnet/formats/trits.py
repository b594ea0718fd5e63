"""Ternary codes as files pack them, to and from int8 arrays of -1, 0, +1.

Every layout stores w + 1. In the three 2-bit layouts the code 3 means nothing, so it is refused, not guessed.
The work goes in chunks that stay in the processor's cache: about 2e9 weights a second on one core.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]

_CHUNK = 1 << 18  # packed bytes at a time
_I2_S = (6, 4, 2, 0)  # shifts of the weights 0..31, 32..63, 64..95, 96..127 of a block
_TQ2_0 = (0, 2, 4, 6)

# TQ1_0: a block of 256 is 32 bytes of 5 trits, 16 bytes of 5 trits, 4 bytes of 4 trits; trit n of all bytes of a part
# comes before trit n + 1. A byte is the fraction 0.t0 t1 t2 t3 t4 (base 3) times 256, rounded up.
_TQ1_0 = ((0, 32, 5), (32, 48, 5), (48, 52, 4))  # from byte, to byte, trits a byte
TQ1_0_BYTES = 52


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


def pack_rows(codes: Codes) -> Bytes:
    """The inverse of unpack_rows; n must be a multiple of 4."""
    n, k = codes.shape
    parts = (codes + np.int8(1)).view(np.uint8).reshape(4, n // 4, k)
    packed: Bytes = parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6
    return packed


def unpack_tq1_0(data: Bytes) -> Codes:
    """TQ1_0 without its scales: (blocks, 52) bytes to (blocks, 256) codes."""
    codes = np.empty((len(data), 256), np.int8)
    step = _CHUNK // TQ1_0_BYTES
    for start in range(0, len(data), step):
        _unpack_tq1_0_chunk(data[start : start + step], codes[start : start + step])
    return codes


def _unpack_tq1_0_chunk(data: Bytes, codes: Codes) -> None:
    at = 0
    for first, last, trits in _TQ1_0:
        fraction = data[:, first:last].copy()
        for _ in range(trits):
            # The leading trit of q / 256 is (3 q) >> 8: 1 from q = 86 on, 2 from q = 171 on.
            code = (fraction >= 86).view(np.int8) + (fraction >= 171).view(np.int8)
            np.subtract(code, 1, out=codes[:, at : at + last - first])
            fraction *= 3  # modulo 256: drops the leading trit
            at += last - first


def pack_tq1_0(codes: Codes) -> Bytes:
    """(blocks, 256) codes to (blocks, 52) bytes."""
    data = np.empty((len(codes), TQ1_0_BYTES), np.uint8)
    step = _CHUNK // 256
    for start in range(0, len(codes), step):
        trits = (codes[start : start + step] + np.int8(1)).astype(np.uint16)
        at = 0
        for first, last, count in _TQ1_0:
            width = last - first
            number = np.zeros((len(trits), width), np.uint16)
            for n in range(5):
                number *= 3
                if n < count:
                    number += trits[:, at : at + width]
                    at += width
            data[start : start + step, first:last] = (number * np.uint16(256) + np.uint16(242)) // np.uint16(243)
    return data


def _unpack_bits(data: Bytes, shifts: tuple[int, ...]) -> Codes:
    """Blocks of 32 bytes to blocks of 4 x 32 codes; group g of a block is in the two bits at shifts[g]."""
    codes = np.empty((data.size // 32, 4), "V32")  # 32 codes move as one item
    for start in range(0, data.size, _CHUNK):
        words = data[start : start + _CHUNK].view(np.uint64)
        _refuse_three(words)
        block = codes[start // 32 : (start + _CHUNK) // 32]
        for group, shift in enumerate(shifts):
            part = words >> np.uint64(shift)
            part &= np.uint64(0x0303030303030303)
            weights = part.view(np.int8)
            weights -= 1
            block[:, group] = weights.view("V32")
    return codes.view(np.int8).reshape(-1)


def _pack_bits(codes: Codes, shifts: tuple[int, ...]) -> Bytes:
    blocks = np.ascontiguousarray(codes).reshape(-1).view("V32").reshape(-1, 4)
    data = np.zeros(len(blocks) * 32, np.uint8)
    for start in range(0, data.size, _CHUNK):
        words = data[start : start + _CHUNK].view(np.uint64)
        block = blocks[start // 32 : (start + _CHUNK) // 32]
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
