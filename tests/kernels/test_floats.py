"""Float operations: close to float64, and equal to the last bit on every instruction set, thread count and batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitnet import _core
from bitnet.backends.packing import BITS

Floats = NDArray[np.float32]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bits(x: Floats) -> NDArray[np.uint32]:
    return np.ascontiguousarray(x).view(np.uint32)


def on_every_set(compute: Callable[[], Floats]) -> Floats:
    """The result, after checking that every instruction set and 1 or 3 threads give the same bits."""
    results = []
    for name in _core.isas():
        for threads in (1, 3):
            _core.set_isa(name)
            _core.set_threads(threads)
            results.append((name, threads, compute()))
    for name, threads, result in results:
        np.testing.assert_array_equal(bits(result), bits(results[-1][2]), err_msg=f"{name}, {threads} threads")
    return results[0][2]


def dense(data: Floats, dtype: str) -> tuple[_core.DenseWeight, NDArray[np.float64]]:
    """The weight and the float64 values that it stands for."""
    if dtype == "F32":
        return _core.DenseWeight(data, dtype), data.astype(np.float64)
    if dtype == "F16":
        return _core.DenseWeight(data.astype(np.float16), dtype), data.astype(np.float16).astype(np.float64)
    if dtype == "BF16":
        raw = (data.view(np.uint32) >> 16).astype(np.uint16)
        return _core.DenseWeight(raw, dtype), (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    n, k = data.shape
    codes = np.random.default_rng(1).integers(-128, 128, (n, k), np.int8)
    scales = np.random.default_rng(2).uniform(0.001, 0.1, (n, k // 32)).astype(np.float16)
    return _core.DenseWeight(codes, dtype, scales), codes.astype(np.float64) * np.repeat(
        scales.astype(np.float64), 32, axis=1
    )


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize(("n", "k"), [(1, 32), (7, 96), (37, 2560), (5, 8640), (33, 100), (3, 1)])
@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_dense_linear(dtype: str, n: int, k: int, tokens: int) -> None:
    if dtype == "Q8_0" and k % 32:
        pytest.skip("Q8_0 has blocks of 32")
    weight, values = dense(normal(n, k), dtype)
    x = normal(tokens, k, seed=1)
    got = on_every_set(lambda: _core.linear(x, [weight])[0])
    bound = 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(values).T) * (1 + k / 256)
    assert (np.abs(got - x.astype(np.float64) @ values.T) <= bound).all()
    one = np.concatenate([_core.linear(x[t : t + 1].copy(), [weight])[0] for t in range(tokens)])
    np.testing.assert_array_equal(bits(one), bits(got))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("k", [32, 96, 100, 17])
def test_embed(dtype: str, k: int) -> None:
    if dtype == "Q8_0" and k % 32:
        pytest.skip("Q8_0 has blocks of 32")
    weight, values = dense(normal(50, k), dtype)
    ids = np.array([49, 0, 7, 7], np.int32)
    got = on_every_set(lambda: _core.embed(weight, ids))
    np.testing.assert_array_equal(got, values[ids].astype(np.float32))


def test_every_half_float_is_decoded_exactly() -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    finite = np.ascontiguousarray(np.resize(finite, (len(finite) // 16, 16)))
    weight = _core.DenseWeight(finite, "F16")
    got = on_every_set(lambda: _core.embed(weight, np.arange(len(finite), dtype=np.int32)))
    np.testing.assert_array_equal(bits(got), bits(finite.astype(np.float32)))


def test_embed_ternary() -> None:
    rng = np.random.default_rng(0)
    codes, scales = rng.integers(-1, 2, (40, 64), np.int8), rng.uniform(0.1, 1, (40, 2)).astype(np.float32)
    ids = np.array([3, 39, 16], np.int32)
    got = on_every_set(lambda: _core.embed(_core.TernaryWeight(codes, scales), ids))
    np.testing.assert_array_equal(got, (codes * np.repeat(scales, 32, axis=1))[ids])


@pytest.mark.parametrize("packing", BITS)
def test_embed_ternary_of_any_packing(packing: str) -> None:
    codes = np.random.default_rng(0).integers(-1, 2, (40, 70), np.int8)
    ids = np.array([3, 39, 16], np.int32)
    got = on_every_set(lambda: _core.embed(_core.TernaryWeight(codes, np.float32(0.5), packing), ids))
    np.testing.assert_array_equal(got, codes[ids] * np.float32(0.5))


def test_embed_refuses_ids_outside_the_table() -> None:
    weight = _core.DenseWeight(normal(5, 16))
    for bad in (-1, 5):
        with pytest.raises(ValueError, match="5 rows"):
            _core.embed(weight, np.array([0, bad], np.int32))


@pytest.mark.parametrize("d", [1, 15, 64, 100, 2560, 6912])
@pytest.mark.parametrize("tokens", [1, 40])
def test_rms_norm(d: int, tokens: int) -> None:
    x, weight = normal(tokens, d) * 3, normal(d, seed=1)
    got = on_every_set(lambda: _core.rms_norm(x, weight, 1e-5))
    x64 = x.astype(np.float64)
    np.testing.assert_allclose(
        got, x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + 1e-5) * weight, rtol=2e-6, atol=1e-30
    )


def rope_reference(
    x: Floats, cos: Floats, sin: Floats, positions: NDArray[np.int32], head_dim: int, interleaved: bool
) -> NDArray[np.float64]:
    heads = x.astype(np.float64).reshape(len(x), -1, head_dim).copy()
    c, s = cos.astype(np.float64)[positions][:, None], sin.astype(np.float64)[positions][:, None]
    half = cos.shape[1]
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    )
    a, b = heads[..., first].copy(), heads[..., second].copy()
    heads[..., first], heads[..., second] = a * c - b * s, b * c + a * s
    return heads.reshape(x.shape)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary"), [(128, 128), (100, 100), (64, 16), (256, 64), (6, 2)])
def test_rope(head_dim: int, rotary: int, interleaved: bool) -> None:
    x, positions = normal(9, 3 * head_dim), np.array([0, 5, 49, 1, 2, 3, 4, 7, 6], np.int32)
    angle = np.random.default_rng(1).uniform(0, 6, (50, rotary // 2))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    got = on_every_set(lambda: _core.rope(x, cos, sin, positions, head_dim, interleaved))
    np.testing.assert_allclose(got, rope_reference(x, cos, sin, positions, head_dim, interleaved), atol=1e-6)
    with pytest.raises(ValueError, match="50 rows"):
        _core.rope(x, cos, sin, positions + np.int32(1), head_dim, interleaved)


def act64(name: str, g: NDArray[np.float64]) -> NDArray[np.float64]:
    if name == "relu2":
        return np.maximum(g, 0) ** 2
    z = g if name == "silu" else 2 * np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)
    return g * np.where(z > -700, 1 / (1 + np.exp(-np.maximum(z, -700))), 0)


@pytest.mark.parametrize("act", ["silu", "relu2", "gelu"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (40, 6912)])
def test_gate(act: str, shape: tuple[int, int]) -> None:
    g, u = normal(*shape) * 5, normal(*shape, seed=1)
    g.flat[0] = -200
    got = on_every_set(lambda: _core.gate(g, u, act))
    np.testing.assert_allclose(got, act64(act, g.astype(np.float64)) * u, rtol=3e-6, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.floats(-1e4, 1e4, width=32), st.sampled_from(["silu", "relu2", "gelu"]))
def test_gate_of_any_number(g: float, act: str) -> None:
    got = _core.gate(np.full((1, 1), g, np.float32), np.ones((1, 1), np.float32), act)[0, 0]
    np.testing.assert_allclose(got, act64(act, np.array(g)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 17), (40, 2560)])
def test_add_and_scale(shape: tuple[int, int]) -> None:
    x, y = normal(*shape), normal(*shape, seed=1)
    np.testing.assert_array_equal(on_every_set(lambda: _core.add(x, y)), x + y)
    np.testing.assert_array_equal(on_every_set(lambda: _core.scale(x, 0.3)), x * np.float32(0.3))


@pytest.mark.parametrize(("d", "block"), [(16, 1), (64, 64), (384, 128), (2560, 512)])
def test_hadamard(d: int, block: int) -> None:
    x, signs = normal(11, d), np.where(normal(d, seed=1) > 0, 1, -1).astype(np.float32)
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.block([[h, h], [h, -h]])
    want = ((x * signs).reshape(11, -1, block).astype(np.float64) @ h.T / np.sqrt(block)).reshape(x.shape)
    np.testing.assert_allclose(on_every_set(lambda: _core.hadamard(x, signs, block)), want, atol=1e-5)
    turned = want.astype(np.float32)
    np.testing.assert_allclose(on_every_set(lambda: _core.hadamard(turned, signs, block, inverse=True)), x, atol=1e-5)
    with pytest.raises(ValueError, match="power of two"):
        _core.hadamard(x, signs, 3)


def test_linear_takes_nan_and_infinity_without_harm(isa: str) -> None:
    x = normal(2, 64)
    x[0, 0], x[1, 1] = np.nan, np.inf
    for weight in (_core.TernaryWeight.random(8, 64, 0, 1.0), _core.DenseWeight(normal(8, 64))):
        assert _core.linear(x, [weight])[0].shape == (2, 8)
