"""Weights packed straight from their files equal those that the Python codecs decode."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet import _core
from bitnet.formats import trits
from bitnet.formats.gguf_codecs import decode, encode, scale_place
from bitnet.quant.tensor import DenseTensor, TernaryTensor

Bytes = NDArray[np.uint8]
BEFORE = 37  # bytes of something else in front of the tensor
SHAPES = {
    "I2_S": [(4, 32), (16, 8), (48, 24), (33, 128), (128, 33), (64, 1060), (300, 2560)],
    "TQ1_0": [(1, 256), (17, 512), (48, 6912), (300, 2560)],
    "TQ2_0": [(1, 256), (17, 512), (48, 6912), (300, 2560)],
    "packed": [(64, 1), (64, 100), (192, 2560), (128, 6912)],
}
CASES = [(dtype, shape) for dtype, shapes in SHAPES.items() for shape in shapes]


class File:
    """A tensor's bytes in a file, between others."""

    def __init__(self, path: Path, data: Bytes) -> None:
        path.write_bytes(b"\xff" * BEFORE + data.tobytes() + b"\xff" * 99)
        self.fd, self.nbytes = os.open(path, os.O_RDONLY), data.size

    def ternary(
        self, dtype: str, shape: tuple[int, int], scale: float = 0.5, packing: str = "2bit"
    ) -> _core.TernaryWeight:
        return _core.TernaryWeight.read(self.fd, BEFORE, self.nbytes, dtype, shape, scale, packing)

    def dense(self, dtype: str, shape: tuple[int, int]) -> _core.DenseWeight:
        return _core.DenseWeight.read(self.fd, BEFORE, self.nbytes, dtype, shape)


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder, self.open = folder, list[File]()

    def __call__(self, data: Bytes) -> File:
        self.open.append(File(self.folder / str(len(self.open)), data))
        return self.open[-1]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Files]:
    files = Files(tmp_path)
    yield files
    for each in files.open:
        os.close(each.fd)


def random_codes(shape: tuple[int, int]) -> NDArray[np.int8]:
    return np.random.default_rng(5).integers(-1, 2, shape, np.int8)


def packed(codes: NDArray[np.int8], dtype: str) -> Bytes:
    if dtype == "packed":
        return trits.pack_rows(codes).reshape(-1)
    return encode(TernaryTensor(codes, np.asarray(0.5, np.float32)), dtype).reshape(-1)


@pytest.mark.parametrize("dtype, shape", CASES)
@pytest.mark.parametrize("packing", ["2bit", "1.6bit", "tl1", "tl2"])
def test_codes_are_those_that_were_written(
    isa: str, file: Files, dtype: str, shape: tuple[int, int], packing: str
) -> None:
    codes = random_codes(shape)
    weight = file(packed(codes, dtype)).ternary(dtype, shape, packing=packing)
    np.testing.assert_array_equal(weight.codes(), codes)
    assert weight.scales == np.float32(0.5)


@pytest.mark.parametrize("dtype", ["TQ1_0", "TQ2_0", "I2_S"])
def test_any_bytes_mean_what_the_codec_says(file: Files, dtype: str) -> None:
    """Bytes that no writer makes, too: several of TQ1_0's stand for the same trits."""
    shape = (64, 1024)
    data = packed(random_codes(shape), dtype)
    noise = np.random.default_rng(1).integers(0, 256, data.size, np.uint8)
    if dtype != "TQ1_0":
        noise &= ~((noise >> 1) & noise & 0x55) & 0xFF  # no code 3
    start, _ = scale_place(shape, dtype) or (0, "")
    if dtype == "I2_S":
        data[:start] = noise[:start]
    else:
        block = data.reshape(-1, start + 2)
        block[:, :start] = noise.reshape(block.shape)[:, :start]
    expected = decode(data, shape, dtype)
    assert isinstance(expected, TernaryTensor)
    np.testing.assert_array_equal(file(data).ternary(dtype, shape).codes(), expected.codes)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_number_of_threads_packs_the_same(file: Files, threads: int) -> None:
    codes = random_codes((1024, 2560))
    source = file(packed(codes, "TQ2_0"))
    _core.set_threads(threads)
    np.testing.assert_array_equal(source.ternary("TQ2_0", codes.shape).codes(), codes)


@pytest.mark.parametrize("dtype", ["I2_S", "TQ2_0", "packed"])
@pytest.mark.parametrize("place", [0, 0.5, 0.99])
def test_the_code_three_is_refused(isa: str, file: Files, dtype: str, place: float) -> None:
    shape = (192, 512)
    data = packed(random_codes(shape), dtype)
    at = int(place * (data.size - 40))
    if dtype == "TQ2_0":
        at = at // 66 * 66 + 7  # not in a scale
    data[at] |= 0xC0
    with pytest.raises(ValueError, match="codes must be -1, 0 or 1"):
        file(data).ternary(dtype, shape)


@pytest.mark.parametrize("dtype", ["TQ1_0", "TQ2_0"])
def test_a_block_with_its_own_scale_is_left_to_the_codec(file: Files, dtype: str) -> None:
    data = packed(random_codes((64, 512)), dtype)
    data[-1] ^= 1
    with pytest.raises(ValueError, match="scale of its own"):
        file(data).ternary(dtype, (64, 512))


@pytest.mark.parametrize("dtype, shape", CASES)
def test_sizes_must_add_up(file: Files, dtype: str, shape: tuple[int, int]) -> None:
    source = file(packed(random_codes(shape), dtype))
    for n, k in [(2 * shape[0], shape[1]), (shape[0], 2 * shape[1])]:
        with pytest.raises(ValueError):
            source.ternary(dtype, (n, k))


def test_a_file_cut_short_is_an_error_not_a_signal(file: Files, tmp_path: Path) -> None:
    source = file(packed(random_codes((300, 2560)), "TQ2_0"))
    os.truncate(tmp_path / "0", BEFORE + source.nbytes - 1000)
    with pytest.raises(RuntimeError, match="cannot be read"):
        source.ternary("TQ2_0", (300, 2560))


def test_rows_that_do_not_fall_into_quarters_of_row_groups_are_left_to_the_codec(file: Files) -> None:
    with pytest.raises(ValueError, match="two quarters"):
        file(packed(random_codes((40, 64)), "packed")).ternary("packed", (40, 64))


def test_an_unknown_type_is_refused(file: Files) -> None:
    with pytest.raises(ValueError, match='"Q2_0"'):
        file(np.zeros(64, np.uint8)).ternary("Q2_0", (16, 16))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("shape", [(1, 32), (7, 64), (300, 96), (129, 2560)])
def test_dense_rows_are_those_of_the_codec(file: Files, dtype: str, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    data = encode(DenseTensor(values), dtype).reshape(-1)
    expected = decode(data, shape, dtype)
    assert isinstance(expected, DenseTensor)
    weight = file(data).dense(dtype, shape)
    assert weight.nbytes == _core.DenseWeight(expected.data, dtype, expected.scales).nbytes
    np.testing.assert_array_equal(_core.embed(weight, np.arange(shape[0], dtype=np.int32)), expected.dequantize())


@pytest.mark.parametrize("columns", [1, 17, 100])
def test_dense_rows_that_are_no_whole_vectors(file: Files, columns: int) -> None:
    values = np.random.default_rng(3).normal(size=(50, columns)).astype(np.float32)
    weight = file(values.reshape(-1).view(np.uint8)).dense("F32", (50, columns))
    x = np.eye(columns, dtype=np.float32)  # what pads a row is zero, or these products would show it
    np.testing.assert_array_equal(_core.linear(x, [weight])[0], values.T)


def test_a_scale_that_is_not_finite_is_left_to_the_codec(file: Files) -> None:
    data = encode(DenseTensor(np.ones((4, 64), np.float32)), "Q8_0").reshape(-1)
    data[-34:-32] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(ValueError, match="not a finite"):
        file(data).dense("Q8_0", (4, 64))
