"""Ternary products are exact: every instruction set returns NumPy's int64 sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitnet import _core
from bitnet.backends.packing import BITS, GROUPED
from bitnet.quant.rules import quantize_activations

PACKINGS = [*BITS]
SHAPES = [(1, 1), (16, 16), (17, 17), (33, 100), (15, 8640), (48, 6912), (100, 2560), (5, 45568)]


def random_codes(n: int, k: int, seed: int = 0) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-1, 2, (n, k), np.int8)


def random_q(t: int, k: int, seed: int = 0) -> NDArray[np.int8]:
    return np.random.default_rng(seed + 1000).integers(-128, 128, (t, k), np.int8)


def exact(codes: NDArray[np.int8], q: NDArray[np.int8]) -> NDArray[np.int64]:
    return q.astype(np.int64) @ codes.astype(np.int64).T


def sums(codes: NDArray[np.int8], q: NDArray[np.int8], packing: str = "2bit") -> NDArray[np.int32]:
    return _core.ternary_matmul_i32(_core.TernaryWeight(codes, np.float32(1), packing), q)


every_packing = pytest.mark.parametrize("packing", PACKINGS)


@every_packing
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 8, 17])
def test_sums_equal_numpy(isa: str, shape: tuple[int, int], tokens: int, packing: str) -> None:
    codes, q = random_codes(*shape), random_q(tokens, shape[1])
    np.testing.assert_array_equal(sums(codes, q, packing), exact(codes, q))


@every_packing
@pytest.mark.parametrize("tokens", range(1, 21))
def test_every_panel_width(isa: str, tokens: int, packing: str) -> None:
    codes, q = random_codes(50, 336), random_q(tokens, 336)
    np.testing.assert_array_equal(sums(codes, q, packing), exact(codes, q))


def test_all_243_bytes_of_five_trits_decode(isa: str) -> None:
    every = np.array(np.meshgrid(*[[-1, 0, 1]] * 5)).reshape(5, 243).T.astype(np.int8)  # (243, field)
    codes = np.zeros((243, 20), np.int8)
    codes[:, ::4] = every  # column 4f is field f
    weight = _core.TernaryWeight(codes, np.float32(1), "1.6bit")
    np.testing.assert_array_equal(weight.codes(), codes)
    for tokens in (1, 2, 4, 7):  # one token, pairs and tiles decode in their own ways
        q = np.resize(np.eye(20, dtype=np.int8), (20 * tokens, 20))
        got = np.concatenate(
            [_core.ternary_matmul_i32(weight, q[i : i + tokens].copy()) for i in range(0, len(q), tokens)]
        )
        np.testing.assert_array_equal(got, np.resize(codes.T, (20 * tokens, 243)))


@pytest.mark.parametrize("code", [-1, 0, 1])
@pytest.mark.parametrize("value", [-128, 127])
@pytest.mark.parametrize("tokens", [1, 5])
@every_packing
def test_extreme_inputs_do_not_overflow(isa: str, code: int, value: int, tokens: int, packing: str) -> None:
    codes, q = np.full((18, 45568), code, np.int8), np.full((tokens, 45568), value, np.int8)
    np.testing.assert_array_equal(sums(codes, q, packing), exact(codes, q))


@every_packing
@pytest.mark.parametrize("tokens", [1, 3])
def test_extremes_of_either_sign_do_not_overflow(isa: str, tokens: int, packing: str) -> None:
    q = np.where(random_codes(tokens, 9000) > 0, 127, -128).astype(np.int8)
    codes = np.vstack([np.sign(q[0]), -np.sign(q[0]), np.sign(q[0]) * (np.arange(9000) % 3 > 0)]).astype(np.int8)
    np.testing.assert_array_equal(sums(codes, q, packing), exact(codes, q))


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 70),
    k=st.integers(1, 600),
    t=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
    threads=st.integers(1, 4),
    packing=st.sampled_from(PACKINGS),
)
def test_any_shape_on_any_set(n: int, k: int, t: int, seed: int, threads: int, packing: str) -> None:
    codes, q = random_codes(n, k, seed), random_q(t, k, seed)
    weight, want = _core.TernaryWeight(codes, np.float32(1), packing), exact(codes, q)
    _core.set_threads(threads)
    for name in _core.isas():
        _core.set_isa(name)
        np.testing.assert_array_equal(_core.ternary_matmul_i32(weight, q), want, err_msg=name)


@every_packing
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_survive_packing(isa: str, shape: tuple[int, int], packing: str) -> None:
    codes = random_codes(*shape)
    weight = _core.TernaryWeight(codes, np.float32(0.5), packing)
    assert weight.packing == packing
    np.testing.assert_array_equal(weight.codes(), codes)
    assert weight.shape == shape


@every_packing
@pytest.mark.parametrize("bad", [-128, -2, 2, 127])
def test_codes_outside_the_alphabet_are_refused(isa: str, bad: int, packing: str) -> None:
    codes = random_codes(20, 40)
    codes[19, 39] = bad
    with pytest.raises(ValueError, match="-1, 0 or 1"):
        _core.TernaryWeight(codes, np.float32(1), packing)


@pytest.mark.parametrize("k", [1, 17, 100, 2560, 6912])
def test_quantize_is_the_rule_of_the_paper(isa: str, k: int) -> None:
    rng = np.random.default_rng(k)
    x = rng.standard_normal((7, k)).astype(np.float32)
    x[1] = 0
    x[2] *= 1e-7
    x[3] *= 1e6
    x[4] = np.round(x[4] * 4) / 2  # ties
    codes, multipliers = _core.quantize(x)
    want_codes, want_multipliers = quantize_activations(x)
    np.testing.assert_array_equal(codes, want_codes)
    np.testing.assert_array_equal(multipliers, want_multipliers)


def test_ties_round_to_even(isa: str) -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5]], np.float32)
    np.testing.assert_array_equal(_core.quantize(x)[0], [[127, 0, 2, 2, 0, -2, 126]])


@every_packing
@pytest.mark.parametrize("kind", ["tensor", "row", 32, 64, 128, 256, 1280])
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_scales_are_applied_in_the_documented_order(isa: str, kind: str | int, tokens: int, packing: str) -> None:
    n, k = 37, 3840
    if isinstance(kind, int) and packing not in GROUPED:
        pytest.skip("kept at 2 bits")
    rng = np.random.default_rng(3)
    codes, x = random_codes(n, k), rng.standard_normal((tokens, k)).astype(np.float32)
    shape = (n, k // kind) if isinstance(kind, int) else {"tensor": (), "row": (n,)}[kind]
    scales = rng.uniform(0.5, 2, shape).astype(np.float32)
    q, s = quantize_activations(x)
    if isinstance(kind, int):
        want = np.zeros((tokens, n), np.float32)
        for g in range(k // kind):
            part = exact(codes[:, g * kind : (g + 1) * kind], q[:, g * kind : (g + 1) * kind]).astype(np.float32)
            want = want + part * scales[:, g]
        want = want / s[:, None]
    else:
        want = exact(codes, q).astype(np.float32) * (scales / s[:, None])
    weight = _core.TernaryWeight(codes, scales, packing)
    np.testing.assert_array_equal(_core.linear(x, [weight])[0], want)
    np.testing.assert_array_equal(weight.scales, scales)
    assert weight.scales.shape == scales.shape
    assert weight.group == (kind if isinstance(kind, int) else 0)


def test_linear_is_the_same_for_any_batch_and_threads(isa: str) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((23, 640)).astype(np.float32)
    weights = [
        _core.TernaryWeight.random(200, 640, 1, 0.7),
        _core.DenseWeight(rng.standard_normal((90, 640)).astype(np.float32), "F32"),
        _core.TernaryWeight(random_codes(65, 640), rng.uniform(0, 1, (65, 10)).astype(np.float32)),
        _core.TernaryWeight.random(120, 640, 2, 0.5, "tl1"),
        _core.TernaryWeight.random(72, 640, 3, 0.2, "tl2"),
    ]
    _core.set_threads(1)
    want = _core.linear(x, weights)
    for threads in (1, 2, 5):
        _core.set_threads(threads)
        for tokens in (1, 2, 7, 8, 9, 23):
            for got, whole in zip(_core.linear(x[:tokens].copy(), weights), want, strict=True):
                np.testing.assert_array_equal(got, whole[:tokens])
    for t in range(23):
        for got, whole in zip(_core.linear(x[t : t + 1].copy(), weights), want, strict=True):
            np.testing.assert_array_equal(got[0], whole[t])


def test_packings_give_the_same_bits_side_by_side(isa: str) -> None:
    rng = np.random.default_rng(6)
    x, codes, scales = rng.standard_normal((9, 300)).astype(np.float32), random_codes(70, 300), rng.uniform(0, 1, 70)
    weights = [_core.TernaryWeight(codes, scales.astype(np.float32), packing) for packing in PACKINGS]
    for tokens in (1, 9):
        together = _core.linear(x[:tokens].copy(), weights)
        for got, weight in zip(together, weights, strict=True):
            np.testing.assert_array_equal(got, together[0])
            np.testing.assert_array_equal(got, _core.linear(x[:tokens].copy(), [weight])[0])


@every_packing
def test_long_prompts_are_cut_without_a_trace(isa: str, packing: str) -> None:
    rng = np.random.default_rng(7)
    x, codes = rng.standard_normal((150, 200)).astype(np.float32), random_codes(40, 200)
    weights = [_core.TernaryWeight(codes, np.float32(0.5), packing), _core.DenseWeight(x[:30].copy(), "F32")]
    whole = _core.linear(x, weights)
    for t in (0, 63, 64, 127, 149):
        for got, alone in zip(whole, _core.linear(x[t : t + 1].copy(), weights), strict=True):
            np.testing.assert_array_equal(got[t], alone[0])
    q = random_q(150, 200)
    np.testing.assert_array_equal(_core.ternary_matmul_i32(weights[0], q), exact(codes, q))


@every_packing
def test_bits_of_a_weight(packing: str) -> None:
    weight = _core.TernaryWeight.zeros(1600, 9600, packing)
    assert 8 * (weight.nbytes - 4) / (1600 * 9600) == BITS[packing]


def test_packings_that_do_not_exist_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="tl2"):
        _core.TernaryWeight(np.zeros((4, 64), np.int8), np.float32(1), "1bit")
    for packing in set(PACKINGS) - set(GROUPED):
        with pytest.raises(ValueError, match="groups"):
            _core.TernaryWeight(np.zeros((4, 64), np.int8), np.zeros((4, 4), np.float32), packing)


@pytest.mark.parametrize("shape", [(1, 1), (33, 100), (64, 2560)])
def test_random_weights_are_ternary_balanced_and_repeatable(shape: tuple[int, int]) -> None:
    codes = _core.TernaryWeight.random(*shape, 7, 0.25).codes()
    _core.set_threads(1)
    np.testing.assert_array_equal(_core.TernaryWeight.random(*shape, 7, 0.25).codes(), codes)
    assert set(np.unique(codes)) <= {-1, 0, 1}
    if codes.size > 10000:
        assert abs(codes.mean(dtype=np.float64)) < 0.01
        assert abs((codes == 0).mean() - 1 / 3) < 0.01
        assert (codes != _core.TernaryWeight.random(*shape, 8, 0.25).codes()).any()


@every_packing
def test_random_weights_are_those_of_any_packing_and_pad_with_zeros(isa: str, packing: str) -> None:
    weight = _core.TernaryWeight.random(17, 21, 3, 1.0, packing)
    np.testing.assert_array_equal(weight.codes(), _core.TernaryWeight.random(17, 21, 3).codes())
    q = random_q(3, 21)
    np.testing.assert_array_equal(_core.ternary_matmul_i32(weight, q), exact(weight.codes(), q))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 5), np.float32), "columns"),
        (np.zeros((2, 8), np.float64), "float32"),
        (np.zeros(8, np.float32), "dimensions"),
        (np.zeros((8, 2), np.float32).T, "contiguous"),
        ([[0.0] * 8], "list"),
    ],
)
def test_wrong_arrays_are_named(x: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.linear(x, [_core.TernaryWeight.random(4, 8, 0, 1.0)])


@pytest.mark.parametrize(
    "scales", [np.zeros(3, np.float32), np.zeros((4, 3), np.float32), np.zeros((4, 4, 1), np.float32)]
)
def test_scales_that_do_not_fit_are_refused(scales: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="scales are"):
        _core.TernaryWeight(np.zeros((4, 64), np.int8), scales)


def test_groups_that_no_kernel_can_cut_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        _core.TernaryWeight(np.zeros((4, 24), np.int8), np.zeros((4, 3), np.float32))


def test_no_tokens_give_no_rows(isa: str) -> None:
    assert _core.linear(np.zeros((0, 8), np.float32), [_core.TernaryWeight.random(4, 8, 0, 1.0)])[0].shape == (0, 4)
