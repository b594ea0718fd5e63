"""TL1 and TL2 against packers that go through the tiles one by one, as bitnet.cpp's converter lays them out."""

import struct

import numpy as np
import pytest

from bitnet import formats
from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats import tile_codes
from bitnet.formats.tile_codes import TL1_TILES, TL2_TILES, nbytes


def trits(shape):
    return np.random.default_rng(sum(shape)).integers(-1, 2, shape).astype(np.int8)


def pack_tl1(codes, rows, columns, micro):
    """Two pairs a byte: 16 rows, then pairs, then the next 16 rows, in a micro-tile of micro rows by 256 / micro."""
    n, k = codes.shape
    numbers, width = (codes.reshape(n, k // 2, 2) @ np.array([3, 1]) + 4).astype(np.uint8), 256 // micro // 2
    out = []
    for tile in range(0, n, rows):
        for left in range(0, k // 2, columns // 2):
            for top in range(tile, tile + rows, micro):
                for at in range(left, left + columns // 2, width):
                    for row in range(top, top + micro, 16):
                        for pair in range(at, at + width, 2):
                            out.append(numbers[row : row + 16, pair] << 4 | numbers[row : row + 16, pair + 1])
    return np.concatenate(out)


def two_a_byte(numbers, rows, columns):
    """Two numbers a byte, 32 rows at a time, of which the second and the third eight change places."""
    n, k = numbers.shape
    out = []
    for tile in range(0, n, rows):
        for left in range(0, k, columns):
            for top in range(tile, tile + rows, 32):
                for at in range(left, left + columns, 2):
                    both = numbers[top : top + 32, at] << 4 | numbers[top : top + 32, at + 1]
                    out += [both[:8], both[16:24], both[8:16], both[24:]]
    return np.concatenate(out)


def pack_tl2(codes, rows, columns, micro):
    n, k = codes.shape
    threes = k - k % columns
    values = codes[:, :threes].reshape(n, -1, 3).astype(int) @ np.array([9, 3, 1])
    signs = []
    for tile in range(0, n, rows):
        for left in range(0, threes // 3, columns // 3):
            for top in range(tile, tile + rows, 32):
                for at in range(left, left + columns // 3, 8):
                    words = np.zeros(16, "<u2")
                    for place, (triple, row) in enumerate(np.ndindex(8, 32)):
                        negative = values[top + row, at + triple] < 0
                        words[place % 16] |= negative << 15 - place // 16
                    signs.append(words.view(np.uint8))
    rest = (codes[:, threes:].reshape(n, -1, 2) @ np.array([3, 1]) + 4).astype(np.uint8)
    parts = [two_a_byte(np.abs(values).astype(np.uint8), rows, columns // 3), *signs]
    return np.concatenate([*parts, two_a_byte(rest, rows, 16)] if rest.size else parts)


CASES = [("TL1", shape) for shape in [(1536, 1536), (1024, 4096), (3200, 3200)]]
CASES += [("TL2", shape) for shape in [(1536, 1536), (1024, 4096), (3200, 3200)]]


def packed(dtype, codes):
    """The bytes of a matrix, padded to their size."""
    data = pack_tl1(codes, *TL1_TILES[codes.shape]) if dtype == "TL1" else pack_tl2(codes, *TL2_TILES[codes.shape])
    return np.pad(data, (0, nbytes(dtype, codes.shape) - data.size))


@pytest.mark.parametrize(("dtype", "shape"), CASES)
def test_tiles_are_put_in_order(dtype, shape):
    codes = trits(shape)
    assert (tile_codes.unpack(packed(dtype, codes), dtype, shape) == codes).all()


@pytest.mark.parametrize("tiles", [TL1_TILES, TL2_TILES])
def test_every_preset_divides_its_shape(tiles):
    for (n, k), (rows, columns, micro) in tiles.items():
        assert n % rows == 0 and rows % micro == 0
        assert k % columns == 0 if tiles is TL1_TILES else k % columns % 32 == 0 and micro == 32


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("dtype", ["TL1", "TL2"])
def test_a_file_is_read_whether_or_not_it_lists_the_scale(save, gguf_bytes, dtype, listed):
    codes = trits((1024, 4096))
    data = packed(dtype, codes).tobytes() + struct.pack("<f28x", 0.75)
    infos = [gguf_bytes.info("w.weight", (4096, 1024), {"TL1": 38, "TL2": 39}[dtype], 0)]
    if listed:
        infos.append(gguf_bytes.info("w.weight_scale", (1,), 0, len(data) - 32))
    infos.append(gguf_bytes.info("norm", (3,), 0, len(data)))
    with formats.open(save(gguf_bytes(infos=infos, data=data + bytes(12)).whole())) as checkpoint:
        weight = checkpoint.read("w.weight")
        assert (weight.codes == codes).all() and weight.scales == 0.75


def test_an_unknown_shape_is_refused_with_the_reason(save, gguf_bytes):
    infos = [gguf_bytes.info("w", (2560, 640), 39, 0)]
    path = save(gguf_bytes(infos=infos, data=bytes(nbytes("TL2", (640, 2560)) + 32)).whole())
    with (
        formats.open(path) as checkpoint,
        pytest.raises(UnsupportedError, match=r"w is \(640, 2560\) in TL2, whose tile"),
    ):
        checkpoint.read("w")


def test_mxfp4_is_not_taken_for_tl2(save, gguf_bytes):
    size = 1024 * 4096 // 32 * 17
    infos = [gguf_bytes.info("w", (4096, 1024), 39, 0), gguf_bytes.info("norm", (3,), 0, size)]
    with pytest.raises(UnsupportedError, match=r"(?s)type 39 and 2,228,224 bytes; TL2 takes 884,736.*MXFP4"):
        formats.open(save(gguf_bytes(infos=infos, data=bytes(size + 12)).whole()))


@pytest.mark.parametrize(("dtype", "says"), [("TL1", "pair"), ("TL2", "triple")])
def test_numbers_that_do_not_exist_are_refused(dtype, says):
    data = packed(dtype, trits((1536, 1536)))
    data[1000] = 0xEE
    with pytest.raises(FormatError, match=says):
        tile_codes.unpack(data, dtype, (1536, 1536))
