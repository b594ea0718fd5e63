"""Tensors to bytes and back, per type."""

import numpy as np
import pytest

from bitnet.errors import FormatError, ParameterError
from bitnet.formats.gguf_codecs import decode, encode
from bitnet.quant.tensor import DenseTensor, TernaryTensor


def there_and_back(tensor, dtype):
    return decode(encode(tensor, dtype), tensor.shape, dtype)


@pytest.mark.parametrize("shape", [(1, 128), (2, 64), (3200, 8640 // 64), (5, 384)])
def test_i2_s_keeps_codes_and_scale_exactly(ternary, shape):
    tensor = ternary(*shape, scales=0.1)
    back = there_and_back(tensor, "I2_S")
    assert (back.codes == tensor.codes).all() and back.scales == tensor.scales and back.scales.shape == ()


def test_i2_s_is_codes_then_a_float32_scale_then_28_bytes(ternary):
    data = encode(TernaryTensor(np.ones((1, 128), np.int8), np.array(1.5, np.float32)), "I2_S")
    assert data.tobytes() == b"\xaa" * 32 + np.float32(1.5).tobytes() + bytes(28)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_finite_is_refused(ternary, scale):
    data = encode(ternary(2, 256), "I2_S")
    data[128:132] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    with pytest.raises(FormatError, match="scale"):
        decode(data, (2, 256), "I2_S")


@pytest.mark.parametrize("dtype", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("scales", [0.5, [0.5, 1.0, 2.0], [[0.5, 1], [2, 4], [8, 16]]])
def test_tq_keeps_one_scale_a_tensor_a_row_or_a_block(ternary, dtype, scales):
    tensor = ternary(3, 512, scales)
    back = there_and_back(tensor, dtype)
    assert (back.codes == tensor.codes).all()
    assert back.scales.shape == tensor.scales.shape and (back.scales == tensor.scales).all()


@pytest.mark.parametrize("dtype", ["TQ1_0", "TQ2_0"])
def test_a_block_without_weights_agrees_with_any_scale(ternary, dtype):
    tensor = ternary(3, 512)
    tensor.codes[1, 256:] = 0
    tensor.codes[2] = 0
    data = encode(tensor, dtype).reshape(6, -1)
    data[3:, -2:] = 0  # d = max|w| = 0, as llama.cpp writes it
    back = decode(data.reshape(-1), tensor.shape, dtype)
    assert back.scales.shape == () and back.scales == 0.5
    data[0, -2:] = np.frombuffer(np.float16(2).tobytes(), np.uint8)
    data[1, -2:] = data[0, -2:]
    assert decode(data.reshape(-1), tensor.shape, dtype).scales.tolist() == [2.0, 0.5, 0.0]


def test_a_tensor_of_zeros_comes_back_as_zeros():
    zeros = TernaryTensor(np.zeros((2, 256), np.int8), np.array([0.5, 0.25], np.float32))
    back = there_and_back(zeros, "TQ2_0")
    assert not back.dequantize().any() and np.isfinite(back.scales).all()


def test_a_ternary_vector_comes_back_as_floats(ternary):
    tensor = ternary(1, 512)
    back = decode(encode(tensor, "TQ2_0"), (512,), "TQ2_0")
    assert isinstance(back, DenseTensor) and back.shape == (512,)
    assert (back.data == tensor.dequantize()[0]).all()


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_plain_types_keep_what_they_can_hold(shape, dtype):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 3
    back = there_and_back(DenseTensor(values), dtype)
    assert back.dtype == dtype and back.shape == shape and (back.dequantize() == values).all()


def test_bf16_rounds_to_the_nearest_even_and_keeps_nan():
    bits = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xFF800000, 0x7F800001], np.uint32)
    data = encode(DenseTensor(bits.view(np.float32)), "BF16").view("<u2")
    assert [f"{value:x}" for value in data] == ["3f80", "3f82", "3f81", "ff80", "7fc0"]


def test_q8_0_is_a_float16_scale_and_32_codes():
    values = np.zeros((1, 32), np.float32)
    values[0, :4] = [127, -127, 2.5, -0.5]
    data = encode(DenseTensor(values), "Q8_0")
    assert data[:2].view("<f2")[0] == 1 and data[2:6].view(np.int8).tolist() == [127, -127, 3, -1]


def test_q8_0_written_twice_is_the_same():
    values = np.random.default_rng(0).standard_normal((9, 96)).astype(np.float32)
    data = encode(DenseTensor(values), "Q8_0")
    back = decode(data, (9, 96), "Q8_0")
    assert np.abs(back.dequantize() - values).max() < np.abs(values).max() / 127
    assert (encode(back, "Q8_0") == data).all()


def test_many_rows_are_rounded_a_part_at_a_time():
    values = np.random.default_rng(0).standard_normal((3, 5, 320 * 1024)).astype(np.float32)
    assert (encode(DenseTensor(values), "F16").view("<f2") == values.astype(np.float16).reshape(-1)).all()


def test_ternary_can_be_stored_as_floats(ternary):
    tensor = ternary(4, 64, [1, 2, 3, 4])
    assert (there_and_back(tensor, "F16").dequantize() == tensor.dequantize()).all()


@pytest.mark.parametrize(
    "dtype, n, k, scales, says",
    [
        ("TQ2_0", 2, 8640, 0.5, "256"),
        ("I2_S", 1, 64, 0.5, "128"),
        ("I2_S", 2, 256, [1, 2], "one scale per tensor"),
        ("TQ1_0", 1, 256, [[1, 2]], "one per 128"),
        ("TQ1_0", 1, 256, 1e6, "float16"),
        ("TQ2_0", 1, 256, 1e-9, "float16"),
    ],
)
def test_what_a_type_cannot_hold_is_refused(ternary, dtype, n, k, scales, says):
    with pytest.raises(ParameterError, match=says):
        encode(ternary(n, k, scales), dtype)


def test_floats_are_not_ternarised_behind_the_callers_back():
    with pytest.raises(ParameterError, match="ternary"):
        encode(DenseTensor(np.ones((1, 256), np.float32)), "TQ2_0")


@pytest.mark.parametrize("dtype, value", [("F16", 1e6), ("Q8_0", np.inf), ("Q8_0", np.nan)])
def test_overflow_is_refused(dtype, value):
    with pytest.raises(ParameterError, match="cannot store"):
        encode(DenseTensor(np.full((1, 32), value, np.float32)), dtype)
