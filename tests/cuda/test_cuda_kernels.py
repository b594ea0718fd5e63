"""Every kernel of the GPU, run on the host, against NumPy: integers equal, whatever lies in the memory before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulated_gpu import EmulatedGPU
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import backends
from bitnet.backends.cuda import CUDA, tiles
from bitnet.backends.cuda.ops import few_rows
from bitnet.backends.cuda.values import Prepared
from bitnet.backends.cuda.with_triton import gemm_shape
from bitnet.backends.cuda.without_triton import warps_across
from bitnet.errors import ResourceError
from bitnet.quant.rules import quantize_activations
from bitnet.quant.tensor import DenseTensor, TernaryTensor

REFERENCE = backends.make("reference")
ROWS = (1, 2, 3, 8, 9, 16, 64, 257)
SHAPES = ((64, 64), (65, 130), (200, 1100))  # one tile; filled up both ways; columns that are split
ONE = np.ones((), np.float32)


@pytest.fixture(scope="module", params=[(90, False), (90, True), (75, True)], ids=["90", "90 backwards", "75"])
def ops(request: pytest.FixtureRequest) -> CUDA:
    """Cards with and without Triton. The order in which threads take their turns must not matter."""
    arch, backwards = request.param
    return CUDA(EmulatedGPU(arch=arch, backwards=backwards))


@pytest.fixture(scope="module", params=[90, 75])
def forwards(request: pytest.FixtureRequest) -> CUDA:
    return CUDA(EmulatedGPU(arch=request.param))


def floats(random: np.random.Generator, *shape: int) -> Any:
    values = random.standard_normal(shape, np.float32)
    return np.where(random.random(shape) < 0.02, 20 * values, values).astype(np.float32)


def ternary(random: np.random.Generator, n: int, k: int, scales: Any = ONE) -> TernaryTensor:
    return TernaryTensor(random.integers(-1, 2, (n, k), np.int8), scales)


def whole_numbers(random: np.random.Generator, rows: int, columns: int) -> Any:
    """Activations that are their own codes: 127 in every row makes the multiplier 1."""
    x = random.integers(-127, 128, (rows, columns)).astype(np.float32)
    x[:, -1] = 127
    return x


def on_gpu(ops: CUDA, x: Any, *weights: Any) -> list[Any]:
    products = ops.linear(ops.device.put(x), *(ops.put(w) for w in weights))
    return [ops.to_host(y) for y in products]


@settings(max_examples=20)
@given(n=st.integers(1, 300), k=st.integers(1, 300))
def test_packing_can_be_undone(n: int, k: int) -> None:
    codes = np.random.default_rng(n * k).integers(-1, 2, (n, k), np.int8)
    np.testing.assert_array_equal(tiles.unpack(tiles.pack(codes), (n, k)), codes)


def test_a_tile_is_laid_out_as_it_is_drawn() -> None:
    codes = np.full((64, 64), -1, np.int8)
    codes[5, 7], codes[21, 7], codes[53, 7] = 0, 1, 1
    packed = tiles.pack(codes)
    assert packed.shape == (1, 1, 16, 64)
    assert packed[0, 0, 5, 7] == 1 | 2 << 2 | 0 << 4 | 2 << 6
    assert np.count_nonzero(packed) == 1


@pytest.mark.parametrize("n, k", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_products_are_exact(forwards: CUDA, rows: int, n: int, k: int) -> None:
    """Scale and multiplier are 1: the float is the integer."""
    random = np.random.default_rng(rows)
    x, w = whole_numbers(random, rows, k), ternary(random, n, k)
    (ours,) = on_gpu(forwards, x, w)
    np.testing.assert_array_equal(ours, x.astype(np.int64) @ w.codes.T.astype(np.int64))


@pytest.mark.parametrize("code", [-1, 1])
@pytest.mark.parametrize("rows", [1, 9])
def test_the_largest_sums_do_not_overflow(forwards: CUDA, rows: int, code: int) -> None:
    k = 1 << 15
    x, w = np.full((rows, k), -127, np.float32), TernaryTensor(np.full((16, k), code, np.int8), ONE)
    np.testing.assert_array_equal(on_gpu(forwards, x, w)[0], -127 * k * code)


@pytest.mark.parametrize("rows", [1, 3, 12])
def test_scales_and_rounding_are_those_of_the_definition(ops: CUDA, rows: int) -> None:
    random = np.random.default_rng(rows)
    x = floats(random, rows, 384)
    for scales in ((), (70,), (70, 3), (70, 6)):
        w = ternary(random, 70, 384, np.asarray(random.uniform(0.01, 2, scales), np.float32))
        np.testing.assert_array_equal(on_gpu(ops, x, w)[0], REFERENCE.linear(x, w)[0])


@pytest.mark.parametrize("rows", [1, 3, 11])
def test_matrices_together_give_what_each_gives_alone(forwards: CUDA, rows: int) -> None:
    random = np.random.default_rng(rows)
    x, weights = floats(random, rows, 200), [ternary(random, n, 200) for n in (130, 7, 64, 65, 1)]
    for ours, w in zip(on_gpu(forwards, x, *weights), weights, strict=True):
        np.testing.assert_array_equal(ours, REFERENCE.linear(x, w)[0])


@pytest.mark.parametrize("rows", [1, 2, 8, 20])
def test_a_product_is_added_to_what_is_there(forwards: CUDA, rows: int) -> None:
    random = np.random.default_rng(rows)
    x, y, w = floats(random, rows, 900), floats(random, rows, 100), ternary(random, 100, 900)
    put = forwards.device.put
    ours = forwards.to_host(forwards.add(put(y), forwards.linear(put(x), forwards.put(w))[0]))
    np.testing.assert_array_equal(ours, y + REFERENCE.linear(x, w)[0])


def test_long_rows_are_worked_on_in_parts(forwards: CUDA) -> None:
    """Eight of them are too many for the shared memory of some cards."""
    k = 14336
    assert few_rows(k, 0, forwards.device.shared) < 8
    random = np.random.default_rng(0)
    x, w = whole_numbers(random, 8, k), ternary(random, 64, k)
    (ours,) = on_gpu(forwards, x, w)
    np.testing.assert_array_equal(ours, x.astype(np.int64) @ w.codes.T.astype(np.int64))


def test_every_way_to_cut_a_product_is_tested() -> None:
    """Shapes of real models fall into the cases that the tests above have with a small card."""
    gpu = EmulatedGPU()
    gpu.processors = 132
    cases = {gemm_shape(rows, 3840, 40, gpu, False)[:2] for rows in (9, 32, 64, 256, 2048)}
    assert cases == {(1, 16), (1, 32), (1, 64), (4, 128)}
    small = {gemm_shape(rows, n, -(-k // 64), EmulatedGPU(), False)[:2] for rows in ROWS[4:] for n, k in SHAPES}
    assert small >= {(1, 16), (1, 64)}


def test_every_way_to_share_a_blocks_warps_is_right() -> None:
    """Warps that have no tokens of their own take some of the columns."""
    gpu = EmulatedGPU(arch=75)
    ops, random = CUDA(gpu), np.random.default_rng(0)
    for rows, across in ((33, 1), (70, 2), (130, 4), (225, 8)):
        gpu.processors = -(-rows // (32 * across)) * 2 // 2
        assert warps_across(2, -(-rows // 32), gpu.processors) == across
        x, w = whole_numbers(random, rows, 700), ternary(random, 100, 700)
        np.testing.assert_array_equal(on_gpu(ops, x, w)[0], x.astype(np.int64) @ w.codes.T.astype(np.int64))


def test_many_rows_of_tiles_at_once(forwards: CUDA) -> None:
    random = np.random.default_rng(0)
    n, k, rows = 330, 70, 260
    if forwards.device.arch >= 80:
        assert gemm_shape(rows, n, 3, forwards.device, False) == (4, 128, 1)
    else:
        assert warps_across(6, 9, forwards.device.processors) == 8
    x, w = whole_numbers(random, rows, k), ternary(random, n, k)
    np.testing.assert_array_equal(on_gpu(forwards, x, w)[0], x.astype(np.int64) @ w.codes.T.astype(np.int64))


def test_rows_are_rounded_as_the_definition_rounds(ops: CUDA) -> None:
    random = np.random.default_rng(1)
    x = np.concatenate([floats(random, 4, 300), np.zeros((1, 300), np.float32)])
    x[2] = np.resize([127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5], 300)
    codes, multipliers, sums = (each.numpy() for each in ops.quantise(Prepared(ops.device.put(x))))
    expected, scale = quantize_activations(x)
    np.testing.assert_array_equal(codes, np.pad(expected, ((0, 0), (0, 20))))
    np.testing.assert_array_equal(multipliers, scale)
    np.testing.assert_array_equal(sums, expected.sum(axis=1, dtype=np.int32))


@pytest.mark.parametrize("act", ["silu", "relu2", "gelu"])
@pytest.mark.parametrize("rows", [1, 2, 3, 9])
def test_gate_norm_and_rounding_in_one_are_those_in_turn(forwards: CUDA, rows: int, act: str) -> None:
    """The same bits whether a few rows are prepared within the product or many before it."""
    random = np.random.default_rng(rows)
    g, u, norm = floats(random, 9, 200), floats(random, 9, 200), floats(random, 200)
    w = ternary(random, 80, 200)
    put, ops = forwards.device.put, forwards
    weight = ops.put(w)

    def product(count: int) -> Any:
        gated = ops.gate(act, put(g[:count]), put(u[:count]))
        return ops.to_host(ops.linear(ops.rms_norm(gated, put(norm), 1e-5), weight)[0])

    np.testing.assert_array_equal(product(rows), product(9)[:rows])
    expected = REFERENCE.linear(REFERENCE.rms_norm(REFERENCE.gate(act, g, u), norm, 1e-5), w)[0]
    np.testing.assert_allclose(product(rows), expected[:rows], rtol=0, atol=0.02 * np.abs(expected).max())


def test_a_row_that_is_not_a_number_stays_alone(forwards: CUDA) -> None:
    random = np.random.default_rng(0)
    w = ternary(random, 40, 96)
    for rows in (3, 12):
        x = floats(random, rows, 96)
        (clean,) = on_gpu(forwards, x, w)
        x[1, 7] = np.nan
        (mixed,) = on_gpu(forwards, x, w)
        assert np.isnan(mixed[1]).all()
        np.testing.assert_array_equal(np.delete(mixed, 1, 0), np.delete(clean, 1, 0))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
def test_float_products_are_good_to_more_than_20_bits_and_do_not_depend_on_other_rows(
    forwards: CUDA, dtype: str
) -> None:
    random = np.random.default_rng(3)
    values = random.standard_normal((150, 96), np.float32)
    scales = random.uniform(0.001, 0.1, (150, 3)).astype(np.float16)
    w = {
        "F32": lambda: DenseTensor(values),
        "F16": lambda: DenseTensor(values.astype(np.float16), "F16"),
        "BF16": lambda: DenseTensor((values.view(np.uint32) >> 16).astype(np.uint16), "BF16"),
        "Q8_0": lambda: DenseTensor(random.integers(-127, 128, (150, 96), np.int8), "Q8_0", scales),
    }[dtype]()
    x = floats(random, 40, 96)
    (ours,) = on_gpu(forwards, x, w)
    exact = x.astype(np.float64) @ w.dequantize().T.astype(np.float64)
    sizes = np.abs(x).astype(np.float64) @ np.abs(w.dequantize()).T.astype(np.float64)
    assert (np.abs(ours - exact) <= 2**-20 * sizes).all()
    for rows in (1, 7, 33):
        np.testing.assert_array_equal(on_gpu(forwards, x[:rows], w)[0], ours[:rows])
    ids = random.integers(0, 150, 9, np.int32)
    np.testing.assert_array_equal(forwards.to_host(forwards.embed(ids, forwards.put(w))), w.dequantize()[ids])


def test_ternary_tables_give_rows(forwards: CUDA) -> None:
    random = np.random.default_rng(0)
    ids = random.integers(0, 90, 9, np.int32)
    for scales in ((), (90,), (90, 2)):
        w = ternary(random, 90, 128, np.asarray(random.uniform(0.1, 1, scales), np.float32))
        ours = forwards.to_host(forwards.embed(ids, forwards.put(w)))
        np.testing.assert_array_equal(ours, REFERENCE.embed(ids, w))


def test_operations_on_rows(ops: CUDA) -> None:
    random = np.random.default_rng(5)
    x, y, norm = floats(random, 7, 192), floats(random, 7, 192), floats(random, 192)
    put = ops.device.put
    dx, dy = put(x), put(y)

    def close(ours: Any, expected: Any) -> None:
        np.testing.assert_allclose(ops.to_host(ours), expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())

    np.testing.assert_array_equal(ops.to_host(ops.add(dx, dy)), x + y)
    np.testing.assert_array_equal(ops.to_host(ops.scale(dx, 0.3)), x * np.float32(0.3))
    np.testing.assert_array_equal(ops.to_host(ops.take(dx, np.array([6, 0, 6], np.int32))), x[[6, 0, 6]])
    close(ops.rms_norm(dx, put(norm), 1e-6), REFERENCE.rms_norm(x, norm, 1e-6))
    close(ops.rms_norm(dx, put(norm[:64]), 1e-6), REFERENCE.rms_norm(x, norm[:64], 1e-6))
    for act in ("silu", "relu2", "gelu"):
        close(ops.gate(act, dx, dy), REFERENCE.gate(act, x, y))
    signs = random.choice(np.array([-1, 1], np.float32), 192)
    for inverse in (False, True):
        close(ops.hadamard(dx, put(signs), 64, inverse), REFERENCE.hadamard(x, signs, 64, inverse))


@pytest.mark.parametrize("width", [1000, 6500])
@pytest.mark.parametrize("top", [1, 2, 40, 256])
def test_the_largest_logits_are_found(ops: CUDA, top: int, width: int) -> None:
    """Out of fewer and of more runs of 128 than are wanted."""
    random = np.random.default_rng(top)
    logits = random.standard_normal((4, width), np.float32)
    logits[1] = np.round(logits[1])  # many are equal
    logits[2, : width // 2] = -np.inf
    logits[3].sort()  # all in few runs
    tops = np.array([top, 1, top, top], np.int32)
    found = ops.select(ops.device.put(logits), ops.device.put(tops), width)[0].numpy()
    for row, entry, count in zip(logits, found, tops, strict=True):
        ids = entry[1 : 1 + entry[0]]
        expected = np.flatnonzero(row >= np.sort(row)[-count])
        np.testing.assert_array_equal(np.sort(ids), expected)
        np.testing.assert_array_equal(entry[width + 1 : width + 1 + entry[0]].view(np.float32), row[ids])


def test_zeros_of_either_sign_are_equal(ops: CUDA) -> None:
    """As to NumPy, which takes the first of them."""
    logits = np.array([[-1, -0.0, 0.0, -2, -0.0], [-1, 0.0, -0.0, -2, -3]], np.float32)
    found = ops.select(ops.device.put(logits), ops.device.put(np.ones(2, np.int32)), 5)[0].numpy()
    assert [sorted(row[1 : 1 + row[0]]) for row in found] == [[1, 2, 4], [1, 2]]


def test_memory_of_other_sizes_is_given_back_before_it_runs_out() -> None:
    """Prompts leave pieces of every length behind."""
    gpu = EmulatedGPU(memory=1 << 20)
    for size in range(20_000, 200_000, 20_000):
        gpu.empty((size,)).write(np.zeros(size, np.float32))
    kept = gpu.empty((100_000,))
    with pytest.raises(ResourceError, match="full"):
        gpu.empty((200_000,))
    del kept
    gpu.empty((200_000,))
