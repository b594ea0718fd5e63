"""Writing GGUF: what goes in comes out, whole or not at all."""

import re
import shutil
import struct

import numpy as np
import pytest

from bitnet import formats
from bitnet.errors import ParameterError, ResourceError
from bitnet.formats import TensorSpec, write_gguf
from bitnet.quant.tensor import DenseTensor

ARCHITECTURE = {"general.architecture": "bitnet-b1.58"}


@pytest.fixture
def norm():
    return TensorSpec.of("output_norm.weight", DenseTensor(np.array([1, 2, 3], np.float32)), "F32")


def test_a_small_file_is_these_bytes(tmp_path, gguf_bytes, norm):
    write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [norm])
    pairs = [*gguf_bytes().pairs, gguf_bytes.pair("general.alignment", 4, struct.pack("<I", 32))]
    data = struct.pack("<3f", 1, 2, 3).ljust(32, b"\0")
    expected = gguf_bytes(pairs=pairs, infos=[gguf_bytes.info("output_norm.weight", (3,), 0, 0)], data=data).whole()
    assert (tmp_path / "m.gguf").read_bytes() == expected


def test_tensors_of_every_type_come_back(tmp_path, ternary):
    weight = ternary(3, 512)
    types = ["F32", "F16", "BF16", "Q8_0", "I2_S", "TQ1_0", "TQ2_0"]
    write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [TensorSpec.of(name, weight, name) for name in types])
    with formats.open(tmp_path / "m.gguf") as checkpoint:
        assert [(info.name, info.dtype, info.shape) for info in checkpoint.tensors().values()] == [
            (name, name, (3, 512)) for name in types
        ]
        for name in types:
            error = np.abs(checkpoint.read(name).dequantize() - weight.dequantize()).max()
            assert error < (1e-3 if name == "Q8_0" else 1e-9)


@pytest.mark.parametrize(
    "value, kind",
    [
        (True, 7),
        (5, 4),
        (-5, 5),
        (1 << 40, 10),
        (-(1 << 40), 11),
        (0.5, 6),
        ("text", 8),
        (np.int32(5), 5),
        (np.uint8(5), 0),
        (np.float64(0.5), 12),
        (np.bool_(True), 7),
        ([1, -2], 5),
        ([1 << 40], 11),
        ([0.5, 1.5], 6),
        ([True, False], 7),
        (["a", ""], 8),
        (np.array([1, 2], np.uint64), 10),
        (np.array([], np.int32), 5),
        (np.array([], str), 8),
    ],
)
def test_values_keep_their_types(tmp_path, value, kind):
    write_gguf(tmp_path / "m.gguf", {"k": value, **ARCHITECTURE}, [])
    is_array = isinstance(value, list | np.ndarray)
    at = 24 + 8 + 1 + (4 if is_array else 0)
    assert struct.unpack_from("<I", (tmp_path / "m.gguf").read_bytes(), at) == (kind,)
    read = formats.open(tmp_path / "m.gguf").metadata["k"]
    assert read == (value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


@pytest.mark.parametrize("value", [None, 1 << 64, [], [1, "a"], [[1]], {"a": 1}, np.zeros((2, 2)), "\ud800", 1j])
def test_values_without_a_type_are_refused(tmp_path, value):
    with pytest.raises(ParameterError):
        write_gguf(tmp_path / "m.gguf", {"k": value}, [])
    assert not list(tmp_path.iterdir())


def test_tensors_are_asked_for_one_at_a_time(tmp_path, ternary):
    alive = []

    def load(name):
        assert not alive
        return ternary(2, 256)

    specs = [TensorSpec(name, (2, 256), "I2_S", lambda name=name: [lambda: load(name)]) for name in "abc"]
    write_gguf(tmp_path / "m.gguf", ARCHITECTURE, specs)
    assert list(formats.open(tmp_path / "m.gguf").tensors()) == ["a", "b", "c"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, norm):
    write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [norm])
    before = (tmp_path / "m.gguf").read_bytes()

    def fail():
        raise RuntimeError("no more weights")

    with pytest.raises(RuntimeError, match="no more weights"):
        write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [norm, TensorSpec("x", (2,), "F32", lambda: [fail])])
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == before


def test_nothing_lies_under_the_name_before_it_is_whole(tmp_path, norm):
    def load():
        assert not (tmp_path / "m.gguf").exists()
        return DenseTensor(np.ones(3, np.float32))

    write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [TensorSpec("n", (3,), "F32", lambda: [load])])
    assert (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    "shape, dtype, says",
    [
        ((3,), "Q4_1", "cannot be written"),
        ((2, 8640), "TQ1_0", "256"),
        ((0,), "F32", "1 to 4 sizes"),
        ((), "F32", "1 to 4 sizes"),
        ((1, 1, 1, 1, 1), "F32", "1 to 4 sizes"),
    ],
)
def test_a_tensor_that_cannot_be_stored_is_named_before_anything_is_written(tmp_path, shape, dtype, says):
    with pytest.raises(ParameterError, match=f"blk.7.ffn_up.*{says}"):
        write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [TensorSpec("blk.7.ffn_up", shape, dtype, lambda: [])])


@pytest.mark.parametrize(("shape", "dtype"), [((4, 96), "TQ2_0"), ((2, 33), "Q8_0")])
def test_the_types_that_a_hint_names_take_the_tensor(tmp_path, ternary, shape, dtype):
    tensor = ternary(*shape) if dtype == "TQ2_0" else DenseTensor(np.ones(shape, np.float32))
    with pytest.raises(ParameterError) as refused:
        write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [TensorSpec.of("x", tensor, dtype)])
    named = re.findall(r"\b(?:B?F\d+|[IT]*Q?\d_\w)\b", refused.value.hint)
    assert named == (["I2_S"] if dtype == "TQ2_0" else ["F16", "BF16", "F32"])
    for kind in named:
        write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [TensorSpec.of("x", tensor, kind)])
        with formats.open(tmp_path / "m.gguf") as written:
            np.testing.assert_array_equal(written.read("x").dequantize(), tensor.dequantize())


def test_another_shape_than_announced_is_refused(tmp_path, norm):
    with pytest.raises(ParameterError, match=r"x is \(3,\); it was announced as \(4,\)"):
        write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [TensorSpec("x", (4,), "F32", norm.blocks)])


def test_two_tensors_of_one_name_are_refused(tmp_path, norm):
    with pytest.raises(ParameterError, match=r"output_norm.weight"):
        write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [norm, norm])


def test_a_full_disk_is_seen_before_writing(tmp_path, norm, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(ResourceError, match="10 are free"):
        write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [norm])


def test_a_disk_that_fails_is_a_resource_error(tmp_path, norm, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_gguf(tmp_path / "m.gguf", ARCHITECTURE, [norm])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", [".", "missing/m.gguf"])
def test_a_place_that_cannot_take_a_file_is_refused(tmp_path, norm, where):
    with pytest.raises(ParameterError, match="directory"):
        write_gguf(tmp_path / where, ARCHITECTURE, [norm])
