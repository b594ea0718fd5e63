"""Every operation of base.py on the C++ core, with every instruction set that runs here, against the definition.

Integers must be equal; floats may differ by the order of their sums.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet import backends
from bitnet.backends.base import BLOCK_SIZE, Ops, Rope, Step
from bitnet.quant.rules import quantize_activations
from bitnet.quant.tensor import DenseTensor, TernaryTensor

ISAS = tiny.usable_isas()
pytestmark = pytest.mark.skipif(not ISAS, reason="the C++ core is not built")
TOLERANCE = 2e-6  # of the largest result
SEEDS = st.integers(0, 2**32 - 1)
REFERENCE = backends.make("reference")
many_shapes = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module", params=ISAS)
def cpu(request: pytest.FixtureRequest) -> Any:
    with tiny.isa(request.param):
        yield backends.make("cpu")


def close(ours: Any, expected: Any, scale: float = 0.0) -> None:
    """scale: of the numbers that were added up, where the sum may be much smaller than they are."""
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max(initial=max(scale, 1e-30)))


def floats(random: np.random.Generator, *shape: int) -> Any:
    """Normal numbers, a few of them large, as activations have them."""
    values = random.standard_normal(shape, np.float32)
    return np.where(random.random(shape) < 0.02, 20 * values, values).astype(np.float32)


def ternary(random: np.random.Generator, n: int, k: int, scales: tuple[int, ...] = ()) -> TernaryTensor:
    codes = random.integers(-1, 2, (n, k), np.int8)
    return TernaryTensor(codes, np.asarray(random.uniform(0.01, 2, scales), np.float32))


def dense(random: np.random.Generator, dtype: str, *shape: int) -> DenseTensor:
    values = random.standard_normal(shape, np.float32)
    if dtype == "BF16":
        return DenseTensor((values.view(np.uint32) >> 16).astype(np.uint16), "BF16")
    if dtype == "Q8_0":
        scales = random.uniform(0.001, 0.1, (*shape[:-1], shape[-1] // 32)).astype(np.float16)
        return DenseTensor(random.integers(-127, 128, shape, np.int8), "Q8_0", scales)
    return DenseTensor(values.astype({"F32": np.float32, "F16": np.float16}[dtype]), dtype)


def largest_sum(x: Any, w: Any) -> float:
    """What the largest sum of products would be if all of them were positive."""
    return float((np.abs(x) @ np.abs(w.dequantize()).T).max())


def both(cpu: Ops, call: Any, *tensors: Any) -> tuple[Any, Any]:
    """`call(ops, *weights)` on the C++ core and on the definition."""
    return call(cpu, *map(cpu.put, tensors)), call(REFERENCE, *map(REFERENCE.put, tensors))


# The product of int8 activations and ternary weights.


@many_shapes
@given(seed=SEEDS, t=st.integers(1, 40), n=st.integers(1, 200), k=st.integers(1, 700))
def test_ternary_products_of_any_shape(cpu: Ops, seed: int, t: int, n: int, k: int) -> None:
    random = np.random.default_rng(seed)
    x, w = floats(random, t, k), ternary(random, n, k)
    ours, expected = both(cpu, lambda ops, w: ops.linear(x, w)[0], w)
    close(ours, expected)


@pytest.mark.parametrize("k", [64, 100, 160, 256, 2560, 3200, 6912, 8640, 45568])
@pytest.mark.parametrize("t", [1, 7, 64])
def test_ternary_products_of_model_shapes(cpu: Ops, k: int, t: int) -> None:
    random = np.random.default_rng(k + t)
    x, w = floats(random, t, k), ternary(random, 48, k)
    close(*both(cpu, lambda ops, w: ops.linear(x, w)[0], w))


@pytest.mark.parametrize("code", [-1, 0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_sums_as_large_as_they_can_be_do_not_overflow(cpu: Ops, code: int, sign: int) -> None:
    """Every product is +-127; 45568 is the longest row of a published model."""
    k = 45568
    x = np.full((3, k), sign * 2.5, np.float32)
    w = TernaryTensor(np.full((16, k), code, np.int8), np.float32(1).reshape(()))
    ours, expected = both(cpu, lambda ops, w: ops.linear(x, w)[0], w)
    np.testing.assert_array_equal(ours, expected)


@many_shapes
@given(
    seed=SEEDS,
    t=st.integers(1, 9),
    n=st.integers(1, 70),
    groups=st.integers(1, 6),
    group=st.sampled_from([32, 64, 128, 256]),
)
def test_scales_per_row_and_per_group(cpu: Ops, seed: int, t: int, n: int, groups: int, group: int) -> None:
    random = np.random.default_rng(seed)
    x = floats(random, t, groups * group)
    for scales in ((n,), (n, groups)):
        w = ternary(random, n, groups * group, scales)
        close(*both(cpu, lambda ops, w: ops.linear(x, w)[0], w), largest_sum(x, w))


@many_shapes
@given(seed=SEEDS, rows=st.lists(st.integers(1, 90), min_size=2, max_size=4), k=st.integers(1, 300))
def test_several_weights_at_once_give_what_each_gives_alone(cpu: Ops, seed: int, rows: list[int], k: int) -> None:
    random = np.random.default_rng(seed)
    x = floats(random, 5, k)
    weights = [cpu.put(ternary(random, n, k)) for n in rows]
    for together, w in zip(cpu.linear(x, *weights), weights, strict=True):
        np.testing.assert_array_equal(together, cpu.linear(x, w)[0])


@many_shapes
@given(seed=SEEDS, t=st.integers(2, 40), n=st.integers(1, 70), k=st.integers(1, 400))
def test_a_row_does_not_depend_on_the_rows_beside_it(cpu: Ops, seed: int, t: int, n: int, k: int) -> None:
    random = np.random.default_rng(seed)
    x, w = floats(random, t, k), cpu.put(ternary(random, n, k))
    whole = cpu.linear(x, w)[0]
    for i in (0, t // 2, t - 1):
        np.testing.assert_array_equal(cpu.linear(x[i : i + 1], w)[0][0], whole[i])


def test_rows_of_zeros_and_of_tiny_numbers(cpu: Ops) -> None:
    random = np.random.default_rng(0)
    x = np.zeros((4, 128), np.float32)
    x[1], x[2, 5], x[3] = 1e-30, -1e-6, random.standard_normal(128) * 1e30
    w = ternary(random, 32, 128)
    ours, expected = both(cpu, lambda ops, w: ops.linear(x, w)[0], w)
    assert np.isfinite(ours).all()
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=0)


def test_halves_round_to_even(cpu: Ops) -> None:
    """127 in the row makes the multiplier 1, so that the others are rounded as they stand."""
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5, 3.5]], np.float32)
    identity = TernaryTensor(np.eye(10, dtype=np.int8), np.float32(1).reshape(()))
    expected = [[127, 0, 2, 2, 0, -2, -2, 126, -126, 4]]
    np.testing.assert_array_equal(quantize_activations(x)[0], expected)
    np.testing.assert_array_equal(cpu.linear(x, cpu.put(identity))[0], expected)


def test_a_row_that_is_not_a_number_stays_alone(cpu: Ops) -> None:
    random = np.random.default_rng(0)
    x, w = floats(random, 3, 96), cpu.put(ternary(random, 20, 96))
    clean = cpu.linear(x, w)[0]
    x[1, 7] = np.nan
    mixed = cpu.linear(x, w)[0]
    np.testing.assert_array_equal(mixed[[0, 2]], clean[[0, 2]])


# Dense weights: embedding, output head, float projections.


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
@many_shapes
@given(seed=SEEDS, t=st.integers(1, 20), n=st.integers(1, 130), blocks=st.integers(1, 12), rest=st.integers(0, 31))
def test_dense_products_and_rows(cpu: Ops, dtype: str, seed: int, t: int, n: int, blocks: int, rest: int) -> None:
    random = np.random.default_rng(seed)
    k = 32 * blocks + (0 if dtype == "Q8_0" else rest)
    x, w = floats(random, t, k), dense(random, dtype, n, k)
    close(*both(cpu, lambda ops, w: ops.linear(x, w)[0], w), largest_sum(x, w))
    close(*both(cpu, lambda ops, w: ops.head(x, w), w), largest_sum(x, w))
    ids = random.integers(0, n, t, np.int32)
    np.testing.assert_array_equal(*both(cpu, lambda ops, w: ops.embed(ids, w), w))


@many_shapes
@given(seed=SEEDS, n=st.integers(1, 60), groups=st.integers(1, 4))
def test_ternary_tables_give_rows(cpu: Ops, seed: int, n: int, groups: int) -> None:
    random = np.random.default_rng(seed)
    ids = random.integers(0, n, 9, np.int32)
    for scales in ((), (n,), (n, groups)):
        w = ternary(random, n, 64 * groups, scales)
        np.testing.assert_array_equal(*both(cpu, lambda ops, w: ops.embed(ids, w), w))


def test_a_head_of_no_rows_is_empty(cpu: Ops) -> None:
    w = dense(np.random.default_rng(0), "F16", 40, 64)
    assert np.asarray(cpu.head(np.empty((0, 64), np.float32), cpu.put(w))).shape == (0, 40)


# The others.


@many_shapes
@given(seed=SEEDS, t=st.integers(1, 20), d=st.integers(1, 900), eps=st.sampled_from([1e-5, 1e-6, 1e-2]))
def test_rms_norm(cpu: Ops, seed: int, t: int, d: int, eps: float) -> None:
    random = np.random.default_rng(seed)
    x = floats(random, t, d)
    close(*both(cpu, lambda ops, w: ops.rms_norm(x, w, eps), dense(random, "F32", d)))


@many_shapes
@given(
    seed=SEEDS,
    t=st.integers(1, 12),
    heads=st.integers(1, 6),
    half=st.integers(1, 70),
    style=st.sampled_from(["neox", "interleaved"]),
)
def test_rope(cpu: Ops, seed: int, t: int, heads: int, half: int, style: str) -> None:
    random = np.random.default_rng(seed)
    x, positions = floats(random, t, heads * 2 * half), random.integers(0, 5000, t, np.int32)
    factors = tuple(random.uniform(1, 8, half).tolist()) if seed % 2 else None
    rope = Rope(10000.0, 2 * half, style, factors)
    close(*both(cpu, lambda ops: ops.rope(x, positions, rope)))


@many_shapes
@given(seed=SEEDS, t=st.integers(1, 12), f=st.integers(1, 700), act=st.sampled_from(["silu", "relu2", "gelu"]))
def test_gate_and_add(cpu: Ops, seed: int, t: int, f: int, act: str) -> None:
    random = np.random.default_rng(seed)
    g, u = 5 * floats(random, t, f), floats(random, t, f)
    ours, expected = both(cpu, lambda ops: ops.gate(act, g, u))
    # Of the inputs, not of the result: far to the left of zero, 1 + tanh(x) loses its digits in either.
    np.testing.assert_allclose(ours, expected, rtol=4e-6, atol=4e-7 * np.abs(g * u).max(initial=1e-30))
    np.testing.assert_array_equal(*both(cpu, lambda ops: ops.add(g, u)))
    rows = random.integers(0, t, 5, np.int32)
    np.testing.assert_array_equal(*both(cpu, lambda ops: ops.take(g, rows)))


def test_gates_far_from_zero_stay_finite(cpu: Ops) -> None:
    g = np.array([[-200, -90, -88, -1e4, 0, 88, 200, 1e4]], np.float32)
    for act in ("silu", "relu2", "gelu"):
        ours, expected = both(cpu, lambda ops, act=act: ops.gate(act, g, np.ones_like(g)))
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-30)


def steps(random: np.random.Generator, lengths: list[int], chunk: int) -> list[Step]:
    """Sequences of these lengths read side by side, `chunk` positions of each in a step, their blocks in any order."""
    blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    order = iter(random.permutation(sum(blocks)))
    tables = np.full((len(lengths), max(blocks)), -1, np.int32)
    for row, count in zip(tables, blocks, strict=True):
        row[:count] = list(itertools.islice(order, count))
    found = []
    for at in range(0, max(lengths), chunk):
        spans = [(b, at, min(at + chunk, length)) for b, length in enumerate(lengths) if at < length]
        starts = np.cumsum([0] + [end - start for _, start, end in spans]).astype(np.int32)
        positions = np.concatenate([np.arange(start, end, dtype=np.int32) for _, start, end in spans])
        ids = np.zeros(len(positions), np.int32)
        found.append(Step(ids, positions, starts, ids[:0], tables[[b for b, _, _ in spans]]))
    return found


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@many_shapes
@given(
    seed=SEEDS,
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    chunk=st.integers(1, 50),
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 5),
    half=st.integers(1, 40),
)
def test_attention_over_a_paged_cache(
    cpu: Ops, dtype: str, seed: int, lengths: list[int], chunk: int, kv_heads: int, shared: int, half: int
) -> None:
    random = np.random.default_rng(seed)
    head_dim, layers = 2 * half, 2
    plan = steps(random, lengths, chunk)
    blocks = sum(-(-length // BLOCK_SIZE) for length in lengths)
    caches = [ops.new_cache(layers, blocks, kv_heads, head_dim, dtype) for ops in (cpu, REFERENCE)]
    for step, layer in itertools.product(plan, range(layers)):
        # Without outliers in q and k: an error of a score is one of its exponential, and grows with the score.
        q = random.standard_normal((len(step.ids), kv_heads * shared * head_dim), np.float32)
        k = random.standard_normal((len(step.ids), kv_heads * head_dim), np.float32)
        v = floats(random, *k.shape)
        ours, expected = (
            ops.attention(q, k, v, cache, layer, step, head_dim)
            for ops, cache in zip((cpu, REFERENCE), caches, strict=True)
        )
        close(ours, expected, 10.0)


# Whole models.

MODELS = {
    "relu2": tiny.BITNET,
    "silu": tiny.SILU,
    "llama": tiny.LLAMA | {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "head-dim": tiny.LLAMA | {"head_dim": 36, "num_key_value_heads": 4},
    "odd": tiny.BITNET | {"hidden_size": 100, "intermediate_size": 270, "head_dim": 50, "vocab_size": 259},
}
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_what_the_definition_computes(cpu: Ops, name: str) -> None:
    source = tiny.Synthetic(MODELS[name])
    ours, expected = tiny.load(source, cpu), tiny.load(source)
    np.testing.assert_allclose(tiny.logits(ours, PROMPT), tiny.logits(expected, PROMPT), rtol=0, atol=5e-5)
    assert tiny.greedy(ours, PROMPT, 12) == tiny.greedy(expected, PROMPT, 12)


@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_same_bits_on_every_instruction_set(name: str, kv: str) -> None:
    logits = {}
    for isa in ISAS:
        with tiny.isa(isa):
            logits[isa] = tiny.logits(tiny.load(tiny.Synthetic(MODELS[name]), "cpu"), PROMPT, kv)
    for isa, found in logits.items():
        np.testing.assert_array_equal(found, logits[ISAS[0]], err_msg=f"{isa} against {ISAS[0]}")


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_same_bits_with_any_number_of_threads(cpu: Ops, name: str) -> None:
    core = pytest.importorskip("bitnet._core")
    model, before = tiny.load(tiny.Synthetic(MODELS[name]), cpu), core.threads()
    found = []
    try:
        for threads in (1, 2, 3, 5):
            core.set_threads(threads)
            found.append(tiny.logits(model, PROMPT))
    finally:
        core.set_threads(before)
    for each in found[1:]:
        np.testing.assert_array_equal(each, found[0])


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_same_bits_however_the_prompt_is_cut(cpu: Ops, name: str) -> None:
    model = tiny.load(tiny.Synthetic(MODELS[name]), cpu)
    whole = tiny.logits(model, PROMPT)
    for chunk in (1, 3, 16):
        cache, table = tiny.new_cache(model, len(PROMPT)), np.arange(2, dtype=np.int32)[None]
        parts = []
        for start in range(0, len(PROMPT), chunk):
            ids = np.asarray(PROMPT[start : start + chunk], np.int32)
            at = np.arange(len(ids), dtype=np.int32)
            step = Step(ids, at + np.int32(start), np.array([0, len(ids)], np.int32), at, table)
            parts.append(np.asarray(model(step, cache)))
        np.testing.assert_array_equal(np.concatenate(parts), whole)
