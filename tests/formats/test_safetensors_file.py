"""The safetensors reader: the library's files open, and damaged ones are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save_file

from bitnet.errors import BitNetError, FormatError, UnsupportedError
from bitnet.formats.safetensors_file import SafetensorsFile

NAME = "model.safetensors"


def line(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=6),
    dtype=st.sampled_from([np.float32, np.float16, np.uint8, np.int8]),
)
def test_what_the_library_writes_is_read(tmp_path_factory, shapes, dtype):
    path = tmp_path_factory.mktemp("st") / NAME
    rng = np.random.default_rng(0)
    tensors = {f"t{i}": rng.integers(0, 100, shape).astype(dtype) for i, shape in enumerate(shapes)}
    save_file(tensors, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert file.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert file.read(name).dtype == tensor.dtype and np.array_equal(file.read(name), tensor)
    file.close()


def test_bf16_comes_back_as_bits(save, safetensors_bytes):
    data = np.array([0x3F80, 0xC000], np.uint16).tobytes()
    file = SafetensorsFile(save(safetensors_bytes({"a": line("BF16", (2,), (0, 4))}, data), NAME))
    assert file.read("a").tolist() == [0x3F80, 0xC000]


def test_a_type_that_models_do_not_need_is_refused_when_it_is_read(save, safetensors_bytes):
    file = SafetensorsFile(save(safetensors_bytes({"a": line("I64", (1,))}, bytes(8)), NAME))
    with pytest.raises(UnsupportedError, match="a is I64; supported are F32"):
        file.read("a")


BAD = {
    "an empty file": (lambda make: b"", "0 bytes"),
    "seven bytes": (lambda make: b"1234567", "7 bytes"),
    "a header of 2^63 bytes": (lambda make: make({}, length=1 << 63), "claims 9,223,372,036,854,775,808"),
    "a header longer than the file": (lambda make: make({"a": line()}, b"", length=1000), "claims 1,000"),
    "a depth bomb": (lambda make: make(b'{"a":' + b"[" * 100_000), "levels deep"),
    "no JSON": (lambda make: make(b"<html>"), "not valid JSON"),
    "a list": (lambda make: make(b"[]"), "JSON list"),
    "a name twice": (lambda make: make(b'{"a":1,"a":2}'), "occurs twice"),
    "a line that is a number": (lambda make: make({"a": 5}), "a is described by 5"),
    "no offsets": (lambda make: make({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)), "offsets None"),
    "an unknown type": (lambda make: make({"a": line("F3")}, bytes(8)), "type 'F3'"),
    "a type that is a list": (lambda make: make({"a": line(["F32"])}, bytes(8)), "type"),
    "a negative dimension": (lambda make: make({"a": line(shape=(-2,))}, bytes(8)), "shape"),
    "a dimension that is true": (lambda make: make({"a": line(shape=(True, 2))}, bytes(8)), "shape"),
    "a fraction as dimension": (lambda make: make({"a": line(shape=(2.0,))}, bytes(8)), "shape"),
    "a product over 2^64": (lambda make: make({"a": line(shape=(1 << 40, 1 << 40))}, bytes(8)), "bytes"),
    "offsets beyond the end": (lambda make: make({"a": line(offsets=(8, 16))}, bytes(8)), "lies from 8 to 16 of 8"),
    "offsets that run backwards": (lambda make: make({"a": line(offsets=(8, 0))}, bytes(8)), "lies from 8 to 0"),
    "another size than the shape": (lambda make: make({"a": line(shape=(3,))}, bytes(8)), "12 bytes"),
    "tensors that overlap": (
        lambda make: make({"a": line(offsets=(0, 8)), "b": line(offsets=(4, 12))}, bytes(12)),
        "overlaps",
    ),
    "a hole": (lambda make: make({"a": line(), "b": line(offsets=(12, 20))}, bytes(20)), "hole"),
    "bytes behind the end": (lambda make: make({"a": line()}, bytes(9)), "its tensors end"),
    "data cut short": (lambda make: make({"a": line()}, bytes(7)), "lies from 0 to 8 of 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_damaged_file_is_refused(save, safetensors_bytes, case):
    make, says = BAD[case]
    path = save(make(safetensors_bytes), NAME)
    with pytest.raises((FormatError, UnsupportedError), match=says):
        SafetensorsFile(path)
    with pytest.raises(Exception):
        load(path.read_bytes())


def test_every_cut_is_refused(save, safetensors_bytes):
    whole = safetensors_bytes({"a": line()}, bytes(8))
    for length in range(len(whole)):
        with pytest.raises(BitNetError):
            SafetensorsFile(save(whole[:length], NAME))
