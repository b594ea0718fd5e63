"""Every tensor type that holds blocks: there and back for any shape, and what is not sound refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet import formats
from bitnet.errors import FormatError, ParameterError, UnsupportedError
from bitnet.formats import TensorSpec, write_gguf
from bitnet.formats.gguf_codecs import decode, encode
from bitnet.formats.gguf_types import BY_ID, BY_NAME, READABLE, TERNARY, WRITABLE
from bitnet.quant.block_encoders import ENCODERS
from bitnet.quant.blocks import BLOCKS, pack_scales, unpack_scales
from bitnet.quant.tensor import DenseTensor, TernaryTensor

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "tensor_types.npz")
TILED = ("TL1", "TL2")
BLOCKED = [name for name in TERNARY if name in WRITABLE and name != "I2_S"]
PER_ROW = ("IQ1_BN", "IQ2_BN", "IQ2_BN_R4")


def codes(rng, dtype, shape):
    return rng.choice([-1, 1] if dtype == "Q1_0" else [-1, 0, 1], shape).astype(np.int8)


@given(
    dtype=st.sampled_from(BLOCKED),
    rows=st.integers(1, 9),
    blocks=st.integers(1, 5),
    scale_of=st.sampled_from(["tensor", "row", "block"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_ternary_tensors_come_back(dtype, rows, blocks, scale_of, seed):
    rng = np.random.default_rng(seed)
    if scale_of == "block" and dtype in PER_ROW:
        scale_of = "row"
    shape = {"tensor": (), "row": (rows,), "block": (rows, blocks)}[scale_of]
    scales = rng.permutation(np.arange(1, 100))[: int(np.prod(shape))].reshape(shape) / np.float32(64)
    tensor = TernaryTensor(codes(rng, dtype, (rows, blocks * BY_NAME[dtype].block)), scales.astype(np.float32))
    data = encode(tensor, dtype)
    back = decode(data, tensor.shape, dtype)
    assert data.size == BY_NAME[dtype].size(tensor.shape)
    assert (back.codes == tensor.codes).all() and (back.dequantize() == tensor.dequantize()).all()
    assert back.scales.size <= tensor.scales.size


@given(rows=st.integers(1, 4), blocks=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_rows_interleaved_by_fours_are_the_rows_of_iq2_bn(rows, blocks, seed):
    rng = np.random.default_rng(seed)
    tensor = TernaryTensor(codes(rng, "IQ2_BN", (4 * rows, 64 * blocks)), rng.random(4 * rows).astype(np.float32))
    plain = encode(tensor, "IQ2_BN").reshape(rows, 4, -1)
    scales, packed = plain[..., :4], plain[..., 4:].reshape(rows, 4, blocks, 16)
    mixed = np.zeros((rows, blocks, 64), np.uint8)
    for p in range(4):  # as ik_llama.cpp's repack_iq2_bn does it, a byte at a time
        for r in range(4):
            for i in range(4):
                for q in range(4):
                    mixed[:, :, 16 * p + 4 * r + i] |= (packed[:, r, :, 4 * q + i] >> 2 * p & 3) << 2 * q
    data = np.concatenate([scales.reshape(rows, -1), mixed.reshape(rows, -1)], axis=1).reshape(-1)
    back = decode(data, tensor.shape, "IQ2_BN_R4")
    assert (back.codes == tensor.codes).all() and (back.dequantize() == tensor.dequantize()).all()


@pytest.mark.parametrize("dtype", BLOCKED)
def test_a_file_keeps_every_ternary_type(tmp_path, dtype):
    tensor = TernaryTensor(codes(np.random.default_rng(0), dtype, (8, 512)), np.float32(0.75))
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "x"}, [TensorSpec.of("w", tensor, dtype)])
    with formats.open(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.tensors()["w"].dtype == dtype
        assert (checkpoint.read("w").codes == tensor.codes).all() and checkpoint.read("w").scales == 0.75


@pytest.mark.parametrize("dtype", [*BLOCKED, "IQ2_BN_R4"])
@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_is_refused(dtype, scale):
    kind = BY_NAME[dtype]
    data = np.full(kind.size((4, 256)), 0x55, np.uint8)  # sound, whatever the type
    assert decode(data, (4, 256), dtype).shape == (4, 256)
    width = kind.row_header or 2
    at = 0 if kind.row_header or dtype in ("Q1_0", "Q2_0", "PQ2_0") else kind.nbytes - 2
    data[at : at + width] = np.frombuffer(np.array(scale, f"<f{width}").tobytes(), np.uint8)
    with pytest.raises(FormatError, match="scale"):
        decode(data, (4, 256), dtype)


@pytest.mark.parametrize("dtype", ["IQ1_BN", "IQ2_BN"])
def test_a_scale_for_each_row_is_no_scale_for_each_block(dtype):
    with pytest.raises(ParameterError, match="scale per row"):
        encode(TernaryTensor(np.ones((2, 128), np.int8), np.ones((2, 2), np.float32)), dtype)


@pytest.mark.parametrize("dtype", [name for name in TERNARY if name not in TILED])
def test_a_row_that_is_no_multiple_of_the_block_is_refused_with_the_rule(save, gguf_bytes, dtype):
    kind = BY_NAME[dtype]
    path = save(gguf_bytes(infos=[gguf_bytes.info("w", (kind.block + 8, 4), kind.id, 0)], data=bytes(4096)).whole())
    with pytest.raises(FormatError, match=rf"w is \(4, {kind.block + 8}\) in {dtype}, which takes .*{kind.block}"):
        formats.open(path)


def test_rows_that_are_no_multiple_of_four_are_refused(save, gguf_bytes):
    path = save(gguf_bytes(infos=[gguf_bytes.info("w", (64, 6), 335, 0)], data=bytes(6 * 20)).whole())
    with pytest.raises(FormatError, match="4 rows at a time"):
        formats.open(path)


@pytest.mark.parametrize("dtype", TERNARY)
def test_ternary_tensors_of_three_dimensions_are_refused(dtype):
    with pytest.raises(UnsupportedError, match="matrices"):
        decode(np.zeros(1 << 16, np.uint8), (2, 4, 256), dtype)


# Float types.


def random_rows(rng, dtype, rows, blocks):
    """Any bytes at all, but for finite scales."""
    data = rng.integers(0, 256, (rows, blocks * BLOCKS[dtype].nbytes)).astype(np.uint8)
    view = data.reshape(-1).view(BLOCKS[dtype].layout)
    for name in ("d", "dmin"):
        if name in view.dtype.names:
            view[name] = rng.standard_normal(len(view)).astype(np.float16)
    return data


def test_sizes_are_those_of_the_list_of_types():
    assert {name: (kind.weights, kind.nbytes) for name, kind in BLOCKS.items()} == {
        name: (BY_NAME[name].block, BY_NAME[name].nbytes) for name in BLOCKS
    }
    assert set(BLOCKS) < set(READABLE) and len(BY_ID) == len(BY_NAME)


@given(
    dtype=st.sampled_from(sorted(BLOCKS)), rows=st.integers(1, 5), blocks=st.integers(1, 4), seed=st.integers(0, 999)
)
def test_rows_are_decoded_one_by_one_as_all_at_once(dtype, rows, blocks, seed):
    rng = np.random.default_rng(seed)
    data = random_rows(rng, dtype, rows, blocks)
    tensor = decode(data.reshape(-1), (rows, blocks * BLOCKS[dtype].weights), dtype)
    assert isinstance(tensor, DenseTensor) and tensor.shape == (rows, blocks * BLOCKS[dtype].weights)
    whole, pick = tensor.dequantize(), rng.integers(0, rows, 7)
    assert whole.shape == tensor.shape and whole.dtype == np.float32
    np.testing.assert_array_equal(tensor.rows(pick), whole[pick])


def value(dtype, block, i):
    """Weight i of a block (a bytes object), after ggml-quants.c, a weight at a time and in Python's integers."""

    def half(at):
        return float(np.frombuffer(block[at : at + 2], "<f2")[0])

    if dtype == "Q4_0":
        return half(0) * ((block[2 + i % 16] >> 4 * (i // 16) & 15) - 8)
    if dtype == "Q5_0":
        high = int.from_bytes(block[2:6], "little") >> i & 1
        return half(0) * ((block[6 + i % 16] >> 4 * (i // 16) & 15 | high << 4) - 16)
    if dtype == "Q6_K":
        n, byte, quarter = i // 128, i % 32, i % 128 // 32
        low = block[64 * n + byte + 32 * (quarter % 2)] >> 4 * (quarter // 2) & 15
        high = block[128 + 32 * n + byte] >> 2 * quarter & 3
        scale = int(np.int8(np.uint8(block[192 + i // 16])))
        return half(208) * scale * ((low | high << 4) - 32)
    if dtype == "Q3_K":
        n, byte, quarter, part = i // 128, i % 32, i % 128 // 32, i // 16
        low = block[32 + 32 * n + byte] >> 2 * quarter & 3
        high = block[byte] >> (4 * n + quarter) & 1
        scale = (block[96 + part % 8] >> 4 * (part // 8) & 15) | (block[104 + part % 4] >> 2 * (part // 4) & 3) << 4
        return half(108) * (scale - 32) * (low - 4 * (1 - high))
    j, s = i // 32, block[4:16]
    scale, least = (
        (s[j] & 63, s[j + 4] & 63) if j < 4 else (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    )
    start = 16 if dtype == "Q4_K" else 48
    q = block[start + 32 * (j // 2) + i % 32] >> 4 * (j % 2) & 15
    if dtype == "Q5_K":
        q |= (block[16 + i % 32] >> j & 1) << 4
    return half(0) * scale * q - half(2) * least


@pytest.mark.parametrize("dtype", sorted(BLOCKS))
def test_a_weight_at_a_time_gives_the_same(dtype):
    data = random_rows(np.random.default_rng(1), dtype, 3, 2)
    kind = BLOCKS[dtype]
    found = DenseTensor(data, dtype).dequantize().reshape(-1, kind.weights)
    for block, weights in zip(data.reshape(-1, kind.nbytes), found, strict=True):
        expected = [value(dtype, block.tobytes(), i) for i in range(kind.weights)]
        np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("dtype", sorted(BLOCKS))
@pytest.mark.parametrize("scale", [np.nan, -np.inf])
def test_a_float_scale_that_is_not_finite_is_refused(dtype, scale):
    data = random_rows(np.random.default_rng(0), dtype, 2, 3)
    for name in ("d", "dmin"):
        if name in BLOCKS[dtype].layout.names:
            bad = data.copy()
            bad.reshape(-1).view(BLOCKS[dtype].layout)[name][4] = scale
            with pytest.raises(FormatError, match="scale"):
                decode(bad.reshape(-1), (2, 3 * BLOCKS[dtype].weights), dtype)


@given(st.integers(0, 2**32 - 1))
def test_scales_of_six_bits_come_back(seed):
    scales, minima = np.random.default_rng(seed).integers(0, 64, (2, 5, 8)).astype(np.uint8)
    back = unpack_scales(pack_scales(scales, minima))
    assert (back[0] == scales).all() and (back[1] == minima).all()


# Writing Q4_K and Q6_K.

ENCODED = sorted(ENCODERS)
# Root of the mean square error, relative, on normal weights: what llama.cpp's own encoder reaches on these rows.
LLAMA_CPP = {"Q4_K": 0.0711, "Q6_K": 0.01771}


@pytest.mark.parametrize("dtype", ENCODED)
def test_the_error_is_not_larger_than_llama_cpps(dtype):
    values = np.random.default_rng(0).standard_normal((64, 2560)).astype(np.float32)
    back = decode(encode(DenseTensor(values), dtype), values.shape, dtype).dequantize()
    assert np.sqrt(np.square(back - values).mean() / np.square(values).mean()) <= LLAMA_CPP[dtype]


@pytest.mark.parametrize(("dtype", "error"), [("Q4_K", 0.01), ("Q6_K", 0.001)])
def test_the_error_on_llama_cpps_own_values_is_small(dtype, error):
    """Values that the type can hold come back but for another choice of `d` and of the parts' minima."""
    values = GOLDEN[f"{dtype}.values"]
    back = decode(encode(DenseTensor(values), dtype), values.shape, dtype).dequantize()
    assert np.sqrt(np.square(back - values).mean() / np.square(values).mean()) < error
    assert (back[values == 0] == 0).mean() > 0.99


@pytest.mark.parametrize("dtype", ENCODED)
@given(rows=st.integers(1, 3), blocks=st.integers(1, 3), seed=st.integers(0, 2**32 - 1), power=st.integers(-6, 4))
def test_an_error_is_bounded_by_the_range_of_its_part(dtype, rows, blocks, seed, power):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, 256 * blocks)) * 10.0**power * rng.choice([0, 0.1, 1], (rows, 1))
    values = values.astype(np.float32)
    back = decode(encode(DenseTensor(values), dtype), values.shape, dtype).dequantize()
    range_of = np.abs(values).reshape(rows, blocks, 256).max(axis=2)
    steps = {"Q4_K": 15, "Q6_K": 32}[dtype]
    # A step of the widest part, a rounding of the parts' scales, and what float16 cannot hold of a tiny d.
    bound = 2 * range_of / steps + 2e-5 + np.where(range_of > 1e-3, 0, range_of)
    assert (np.abs(back - values).reshape(rows, blocks, 256).max(axis=2) <= bound).all()


@pytest.mark.parametrize("dtype", ENCODED)
def test_values_in_the_type_are_copied(dtype):
    data = random_rows(np.random.default_rng(0), dtype, 3, 2)
    tensor = decode(data.reshape(-1), (3, 512), dtype)
    assert (encode(tensor, dtype) == data.reshape(-1)).all()


@pytest.mark.parametrize("dtype", ENCODED)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e7])
def test_what_cannot_be_stored_is_refused(dtype, value):
    values = np.zeros((2, 256), np.float32)
    values[1, 3] = value
    with pytest.raises(ParameterError, match="cannot store"):
        encode(DenseTensor(values), dtype)
