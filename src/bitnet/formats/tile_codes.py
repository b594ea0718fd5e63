"""TL1 and TL2 of bitnet.cpp: ternary codes in the order in which its table-lookup kernels use them.

Pairs (TL1) or triples (TL2) of weights of a row are numbers of 4 bits; their order depends on tile sizes that were
given to the converter and are not in the file, so only the shapes of bitnet.cpp's preset_kernels can be read. Sources:
its utils/convert-hf-to-gguf-bitnet.py for the order, ggml_nbytes and utils/codegen_tl*.py for the sizes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, UnsupportedError

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]

# (rows, columns): (rows of a tile, columns of a tile, rows of a micro-tile), from kernel_config_tl1.ini and _tl2.ini of
# bitnet_b1_58-large, bitnet_b1_58-3B and Llama3-8B-1.58-100B-tokens.
TL1_TILES = {
    (1536, 4096): (256, 128, 32),
    (1536, 1536): (128, 64, 64),
    (4096, 1536): (256, 128, 32),
    (3200, 8640): (160, 64, 32),
    (3200, 3200): (320, 128, 64),
    (8640, 3200): (320, 64, 32),
    (14336, 4096): (256, 128, 64),
    (4096, 14336): (256, 128, 32),
    (1024, 4096): (128, 64, 64),
    (4096, 4096): (128, 64, 32),
}
# The converter cannot write (4096, 1536), whose preset has micro-tiles of 64 rows.
TL2_TILES = {
    (1536, 4096): (256, 96, 32),
    (1536, 1536): (128, 192, 32),
    (3200, 8640): (160, 96, 32),
    (3200, 3200): (320, 96, 32),
    (8640, 3200): (320, 96, 32),
    (14336, 4096): (256, 96, 32),
    (4096, 14336): (128, 96, 32),
    (1024, 4096): (256, 96, 32),
    (4096, 4096): (128, 96, 32),
}


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of the codes of a matrix, up to its scale."""
    n, k = shape
    size = n * k // 4 if dtype == "TL1" else (k - 256) * n // 3 * 5 // 8 + 256 * n // 2 * 4 // 8
    return -(-size // 32) * 32


def unpack(data: Bytes, dtype: str, shape: tuple[int, int]) -> Codes:
    """The codes (n, k) of a TL1 or TL2 matrix."""
    tiles = (TL1_TILES if dtype == "TL1" else TL2_TILES).get(shape)
    if tiles is None:
        raise UnsupportedError(
            f"is {shape} in {dtype}, whose tile sizes are not in the file; they are known for the shapes of "
            "bitnet_b1_58-large, bitnet_b1_58-3B and Llama3-8B-1.58 only.",
            "Convert the model again from its Hugging Face folder.",
        )
    return _unpack_tl1(data, shape, *tiles) if dtype == "TL1" else _unpack_tl2(data, shape, *tiles)


def _unpack_tl1(data: Bytes, shape: tuple[int, int], rows: int, columns: int, micro: int) -> Codes:
    (n, k), width = shape, 256 // micro
    packed = data[: n * k // 4].reshape(
        n // rows, k // columns, rows // micro, columns // width, micro // 16, width // 4, 16
    )
    numbers = np.stack([packed >> 4, packed & 15], axis=-1)
    return _pairs(numbers.transpose(0, 2, 4, 6, 1, 3, 5, 7).reshape(n, k // 2))


def _unpack_tl2(data: Bytes, shape: tuple[int, int], rows: int, columns: int, micro: int) -> Codes:
    n, k = shape
    threes = k - k % columns  # these columns are in triples, the rest in pairs
    indices, signs, rest = np.split(data, [n * threes // 6, n * threes // 6 + n * threes // 24])
    codes = np.empty(shape, np.int8)
    magnitudes = _rows_of_tiles(indices, n, threes // 6, rows, columns // 6)
    codes[:, :threes] = _triples(magnitudes, _signs(signs, n, threes // 3, rows, columns // 3))
    if k > threes:
        codes[:, threes:] = _pairs(_rows_of_tiles(rest[: n * (k - threes) // 4], n, (k - threes) // 4, rows, 8))
    return codes


def _rows_of_tiles(data: Bytes, n: int, k: int, rows: int, columns: int) -> Bytes:
    """Bytes of two numbers in tiles of `rows` by `columns` bytes and micro-tiles of 32 rows, as numbers (n, 2 k).

    The second and the third eight rows of a micro-tile change places.
    """
    tiles = data.reshape(n // rows, k // columns, rows // 32, columns, 4, 8)[..., [0, 2, 1, 3], :]
    numbers = np.stack([tiles >> 4, tiles & 15], axis=-1)
    return numbers.transpose(0, 2, 4, 5, 1, 3, 6).reshape(n, 2 * k)


def _signs(data: Bytes, n: int, k: int, rows: int, columns: int) -> NDArray[np.uint8]:
    """(n, k) ones where a triple is negative: of eight triples of 32 rows, that of row r and triple i is bit
    15 - 2 i - r / 16 of word r % 16."""
    words = data.view("<u2").reshape(n // rows, k // columns, rows // 32, columns // 8, 16)
    bits = (words[..., None] >> np.arange(15, -1, -1, dtype=np.uint16) & 1).astype(np.uint8)
    bits = bits.reshape(*words.shape, 8, 2)  # [.., row % 16, triple, row / 16]
    return bits.transpose(0, 2, 6, 4, 1, 3, 5).reshape(n, k)


def _pairs(numbers: Bytes) -> Codes:
    """3 (w0 + 1) + w1 + 1 to w0, w1, along the last axis."""
    if (numbers > 8).any():
        raise FormatError("holds a pair of weights above 8; 0 to 8 exist.")
    pairs = np.stack([numbers // 3, numbers % 3], axis=-1).astype(np.int8) - np.int8(1)
    return pairs.reshape(len(numbers), -1)


def _triples(magnitudes: Bytes, negative: NDArray[np.uint8]) -> Codes:
    """|9 w0 + 3 w1 + w2| and whether it is negative to w0, w1, w2, along the last axis."""
    if (magnitudes > 13).any():
        raise FormatError("holds a triple of weights above 13; 0 to 13 exist.")
    numbers = magnitudes + np.uint8(13)
    triples = np.stack([numbers // 9, numbers // 3 % 3, numbers % 3], axis=-1).astype(np.int8) - np.int8(1)
    return np.where(negative[..., None], -triples, triples).reshape(len(numbers), -1)
