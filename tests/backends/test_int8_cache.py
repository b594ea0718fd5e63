"""The int8 key-value cache: every instruction set stores what the definition stores and attends it as closely as 16-bit
codes of queries and weights allow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitnet import _core, backends
from bitnet.backends.base import BLOCK_SIZE, Ops, Step
from bitnet.errors import ParameterError

REFERENCE = backends.make("reference")
MOST_CODE = 127 * 256 + 127  # of a query or a weight
SEGMENT = 256  # positions that share the step of their weights
some_shapes = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module", params=tiny.usable_isas())
def cpu(request: pytest.FixtureRequest) -> Any:
    with tiny.isa(request.param):
        yield backends.make("cpu")


def attend(
    ops: Ops,
    q: Any,
    k: Any,
    v: Any,
    head_dim: int,
    kv_heads: int,
    chunk: int = 1 << 20,
    table: Any = None,
    window: int = 0,
) -> tuple[Any, Any]:
    """One sequence in chunks through layer 1 of a new cache: results (T, H * D), and the cache."""
    blocks = -(-len(q) // BLOCK_SIZE)
    table = np.arange(blocks, dtype=np.int32) if table is None else table
    cache, out = ops.new_cache(2, blocks, kv_heads, head_dim, "int8"), []
    for at in range(0, len(q), chunk):
        rows = np.arange(at, min(at + chunk, len(q)), dtype=np.int32)
        step = Step(rows, rows, np.array([0, len(rows)], np.int32), rows[:0], table[None])
        out.append(ops.attention(*(x[rows].copy() for x in (q, k, v)), cache, 1, step, head_dim, window))
    return np.concatenate(out), cache


def bound(q: Any, k: Any, v: Any, head_dim: int) -> Any:
    """(T, H, 1): how far a result may be off. k, v: as they are stored.

    A code is off by half a step. So a score is off by |k|_1 * step of the query / 2, which changes a weight p by a
    factor below 1 + 2.1 of that; and a weight times the scale of its value by half the largest of its segment / 32639.
    """
    heads, keys, values = (x.reshape(len(x), -1, head_dim).astype(np.float64) for x in (q, k, v))
    shared = heads.shape[1] // keys.shape[1]
    keys, values = (np.repeat(x, shared, axis=1) for x in (keys, values))
    score = np.abs(keys).sum(-1).max(0) * np.abs(heads).max(-1) / MOST_CODE / 2 / np.sqrt(head_dim)  # (T, H)
    weight = min(len(q), SEGMENT) / MOST_CODE / 2
    largest = np.abs(values).max(axis=(0, 2))  # (H,)
    return ((np.expm1(2 * score) * 1.05 + weight + 4e-6) * largest)[..., None]


@some_shapes
@given(
    seed=st.integers(0, 2**32 - 1),
    tokens=st.integers(1, 60),
    chunk=st.integers(1, 60),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 6),
    head_dim=st.integers(1, 150),
)
@example(seed=1, tokens=700, chunk=300, kv_heads=1, shared=2, head_dim=32)
@example(seed=2, tokens=40, chunk=40, kv_heads=1, shared=1, head_dim=512)
def test_attention(cpu: Ops, seed: int, tokens: int, chunk: int, kv_heads: int, shared: int, head_dim: int) -> None:
    random = np.random.default_rng(seed)
    q, k, v = (
        random.standard_normal((tokens, n * head_dim), np.float32) for n in (kv_heads * shared, kv_heads, kv_heads)
    )
    v *= random.choice(np.array([0.01, 1, 30], np.float32), (tokens, 1))
    table = random.permutation(-(-tokens // BLOCK_SIZE)).astype(np.int32)
    ours, cache = attend(cpu, q, k, v, head_dim, kv_heads, chunk, table)
    expected, definition = attend(REFERENCE, q, k, v, head_dim, kv_heads, table=table)
    slots = (table[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)[:tokens]
    stored = definition.read(1, slots)
    off = np.abs(ours - expected).reshape(tokens, -1, head_dim)
    assert (off <= bound(q, *(x.reshape(tokens, -1) for x in stored), head_dim)).all()
    for i, block in enumerate(table):
        for found, wanted in zip(cache.read(1, int(block)), stored, strict=True):
            part = wanted[i * BLOCK_SIZE : (i + 1) * BLOCK_SIZE]
            np.testing.assert_array_equal(found[: len(part)], part)


SPECIAL = [0.0, -0.0, 1e-38, -1e-31, 1e-30, 3e-30, 0.5, -1.0, 1.5, 127.0, 2.5 / 127, 1e20, -3e38, 3.4028235e38]


@some_shapes
@given(
    st.lists(
        st.sampled_from(SPECIAL) | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40
    )
)
def test_any_finite_vector_is_stored_as_the_definition_stores_it(cpu: Ops, numbers: list[float]) -> None:
    x = np.array([numbers], np.float32)
    read = attend(cpu, x, x, -x, len(numbers), 1)[1].read(1, 0)
    with np.errstate(all="ignore"):  # scores overflow, and 127 * (the largest number / 127) does
        definition = attend(REFERENCE, x, x, -x, len(numbers), 1)[1].read(1, np.array([0]))
    for found, wanted in zip(read, definition, strict=True):
        np.testing.assert_array_equal(found[:1], wanted)


@pytest.mark.parametrize("where", ["k", "v"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_position_that_is_not_finite_makes_those_that_attend_it_not_a_number(
    cpu: Ops, where: str, number: float
) -> None:
    random = np.random.default_rng(5)
    q, k, v = (random.standard_normal((300, 40), np.float32) for _ in range(3))
    (k if where == "k" else v)[270, 7] = number
    for ops in (cpu, REFERENCE):
        found = np.isnan(attend(ops, q, k, v, 20, 2)[0]).reshape(300, 2, 20)
        assert found[270:, 0].all() and not found[:270].any() and not found[:, 1].any()


def test_what_lies_before_the_window_does_not_matter(cpu: Ops) -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((80, 16)).astype(np.float32) for i in range(3))
    want = attend(cpu, q, k, v, 16, 1, window=20)[0]
    k[3], v[21] = np.nan, np.inf
    found = attend(cpu, q, k, v, 16, 1, window=20)[0]
    seen = [*range(3, 23), *range(21, 41)]  # by rows whose window holds one of the two
    assert np.isnan(found[seen]).all()
    np.testing.assert_array_equal(np.delete(found, seen, 0), np.delete(want, seen, 0))


def test_a_query_that_is_not_finite_harms_itself_alone(cpu: Ops) -> None:
    q, k, v = (np.random.default_rng(i).standard_normal((30, 16)).astype(np.float32) for i in range(3))
    want = attend(cpu, q, k, v, 16, 1)[0]
    q[9, 3] = np.inf
    found = attend(cpu, q, k, v, 16, 1)[0]
    assert np.isnan(found[9]).all()
    np.testing.assert_array_equal(np.delete(found, 9, 0), np.delete(want, 9, 0))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_do_not_overflow(cpu: Ops, sign: int) -> None:
    """512 columns of the largest codes, and 256 positions of the same weight."""
    q = np.ones((300, 512), np.float32)
    k = np.full((300, 512), sign, np.float32)
    k[1::2] *= np.float32(1 + 1e-4)  # a score is 22.6: the weights of even and odd positions differ by 0.2 %
    v = np.where(np.arange(300)[:, None] % 2, 1.0, 3.0).astype(np.float32).repeat(512, axis=1)
    found = attend(cpu, q, k, v, 512, 1)[0]
    weights = np.exp(k.astype(np.float64).sum(-1) / np.sqrt(512) * np.ones((300, 1)))
    weights = np.tril(weights)
    expected = (weights / weights.sum(-1, keepdims=True)) @ v.astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_stored_vector_depends_on_nothing_beside_it(cpu: Ops) -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((16, 48), np.float32)
    other = random.standard_normal((16, 48), np.float32) * 100
    other[5] = x[5]
    pairs = zip(
        attend(cpu, x, x, x, 48, 1)[1].read(1, 0), attend(cpu, x, other, other, 48, 1)[1].read(1, 0), strict=True
    )
    for alone, beside in pairs:
        np.testing.assert_array_equal(alone[5], beside[5])


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_caches_of_floats_can_be_read_too(dtype: str) -> None:
    k, v = (np.random.default_rng(i).standard_normal((20, 3 * 10)).astype(np.float32) for i in range(2))
    cache = _core.KVCache(2, 1, 32, kv_heads=3, head_dim=10, dtype=dtype)
    positions, starts = np.arange(20, dtype=np.int32), np.array([0, 20], np.int32)
    _core.attention(k, k, v, cache, 1, positions, starts, np.zeros((1, 1), np.int32), 10, 1.0)
    for found, x in zip(cache.read(1, 0), (k, v), strict=True):
        np.testing.assert_array_equal(found[:20].reshape(20, 30), x.astype("f2" if dtype == "F16" else "f4"))
        assert found.shape == (32, 3, 10) and not found[20:].any()


def test_what_a_cache_does_not_hold_cannot_be_read() -> None:
    cache = _core.KVCache(2, 3, 16, kv_heads=1, head_dim=8, dtype="I8")
    with pytest.raises(ValueError, match="layer is 2"):
        cache.read(2, 0)
    with pytest.raises(ValueError, match="block 3"):
        cache.read(0, 3)


def test_bytes_of_a_position() -> None:
    """A byte an element and a float a vector, where head_dim is a multiple of 16."""
    cache = _core.KVCache(30, 10, 16, kv_heads=5, head_dim=128, dtype="I8")
    assert cache.nbytes == 160 * 30 * 2 * 5 * (128 + 4)


def test_heads_that_are_too_long_are_refused() -> None:
    with pytest.raises(ParameterError, match="head_dim is 513; an int8 key-value cache takes 512"):
        backends.make("cpu").new_cache(1, 1, 1, 513, "int8")


@pytest.mark.parametrize("name", tiny.VARIANTS)
def test_a_model_computes_what_the_definition_computes(cpu: Ops, name: str) -> None:
    source = tiny.Synthetic(tiny.VARIANTS[name])
    ours, expected = (tiny.logits(tiny.load(source, ops), [3], "int8") for ops in (cpu, REFERENCE))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-5)  # one position: a weight is 1, whatever its step
    assert np.abs(expected - tiny.logits(tiny.load(source), [3])).max() > 1e-3
