"""The operations as TensorIR against the C++ core, bit for bit, and whole models against the definition."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

pytest.importorskip("tvm", reason="the backend tvm needs its extra: pip install 'bitnet[tvm]'")
core = pytest.importorskip("bitnet._core", reason="the C++ core is not built")

from bitnet import BitNet, backends, models
from bitnet.backends import tvm
from bitnet.backends.base import BLOCK_SIZE, Ops, Rope, Step
from bitnet.backends.tvm_values import Dense
from bitnet.backends.writer import written
from bitnet.bench.machine import use_threads
from bitnet.errors import ParameterError
from bitnet.quant.tensor import DenseTensor, TernaryTensor
from bitnet.tensorir import native
from bitnet.tensorir.sequence import Memory, address_of

TVM, NATIVE, CPU = tvm.TVM(), backends.make("tvm"), backends.make("cpu")
RNG = np.random.default_rng(0)
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19]


def floats(*shape: int) -> Any:
    return RNG.standard_normal(shape, np.float32)


def same(call: Any, *tensors: Any) -> None:
    """`call(ops, *weights)` gives the same bits on both."""
    ours, theirs = (call(ops, *map(ops.put, tensors)) for ops in (TVM, CPU))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def ternary(n: int, k: int, scales: tuple[int, ...] = ()) -> TernaryTensor:
    codes = RNG.integers(-1, 2, (n, k), np.int8)
    return TernaryTensor(codes, np.asarray(RNG.uniform(0.01, 2, scales), np.float32))


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("width", [64, 50])
class TestRows:
    """Whole vectors, and a rest."""

    def test_norm_add_and_scale(self, tokens: int, width: int) -> None:
        x, y, weight = floats(tokens, width), floats(tokens, width), floats(width)
        same(lambda ops, w: ops.rms_norm(x, w, 1e-5), DenseTensor(weight))
        same(lambda ops, w: ops.rms_norm(x, w, 1e-5), DenseTensor(weight[: width // 2]))
        same(lambda ops: ops.add(x, y))
        same(lambda ops: ops.scale(x, 1.7))

    @pytest.mark.parametrize("act", ["silu", "relu2", "gelu"])
    def test_gates(self, tokens: int, width: int, act: str) -> None:
        g, u = 30 * floats(tokens, width), floats(tokens, width)
        same(lambda ops: ops.gate(act, g, u))

    @pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
    def test_dense_products_and_rows(self, tokens: int, width: int, dtype: str) -> None:
        x, values = floats(tokens, width), floats(70, width)
        ids = RNG.integers(0, 70, tokens).astype(np.int32)
        kinds = {"F32": values, "F16": values.astype(np.float16), "BF16": (values.view(np.uint32) >> 16).astype("u2")}
        table = DenseTensor(kinds[dtype], dtype)
        same(lambda ops, w: ops.linear(x, w)[0], table)
        same(lambda ops, w: ops.embed(ids, w), table)

    @pytest.mark.parametrize("scales", [(), (70,)])
    def test_ternary_products_and_rows(self, tokens: int, width: int, scales: tuple[int, ...]) -> None:
        x, table = floats(tokens, width), ternary(70, width, scales)
        ids = RNG.integers(0, 70, tokens).astype(np.int32)
        same(lambda ops, w: ops.linear(x, w)[0], table)
        same(lambda ops, w: ops.embed(ids, w), table)

    @pytest.mark.parametrize("style", ["neox", "interleaved"])
    def test_rope(self, tokens: int, width: int, style: str) -> None:
        x, at = floats(tokens, 2 * width), np.arange(tokens, dtype=np.int32) + 7
        same(lambda ops: ops.rope(x, at, Rope(1e4, width, style)))


@pytest.mark.parametrize("tokens", [1, 6])
def test_scales_for_groups_of_columns(tokens: int) -> None:
    x, w = floats(tokens, 256), ternary(48, 256, (48, 4))
    same(lambda ops, w: ops.linear(x, w)[0], w)


@pytest.mark.parametrize("inverse", [False, True])
def test_hadamard(inverse: bool) -> None:
    x, signs = floats(3, 96), np.sign(floats(96))
    same(lambda ops, signs: ops.hadamard(x, signs, 32, inverse), DenseTensor(signs))


@pytest.mark.parametrize("kv", ["f16", "f32"])
@pytest.mark.parametrize("window", [0, 33])
def test_attention_over_segments_windows_and_scattered_blocks(kv: str, window: int) -> None:
    heads, kv_heads, dim, length = 4, 2, 20, 300
    caches = [ops.new_cache(2, -(-length // BLOCK_SIZE) + 1, kv_heads, dim, kv) for ops in (TVM, CPU)]
    table = np.arange(-(-length // BLOCK_SIZE), dtype=np.int32)[None, ::-1].copy()
    start = 0
    for size in (297, 1, 2):
        q, k, v = floats(size, heads * dim), floats(size, kv_heads * dim), floats(size, kv_heads * dim)
        at, none = np.arange(start, start + size, dtype=np.int32), np.zeros(size, np.int32)
        step = Step(none, at, np.array([0, size], np.int32), none[:1], table)
        ours, theirs = (
            ops.attention(q, k, v, cache, 1, step, dim, window) for ops, cache in zip((TVM, CPU), caches, strict=True)
        )
        np.testing.assert_array_equal(ours, theirs)
        start += size


# Whole models: the file that is trained and served is the one that is compiled.

QWEN3 = tiny.BITNET | {"model_type": "qwen3", "hidden_act": "silu", "head_dim": 16}
QWEN3 |= {"quantization_config": {"quant_method": "bitnet"}}
GEMMA3 = QWEN3 | {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 12}
GEMMA3 |= {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 20}
MODELS = {
    "bitnet": tiny.BITNET,
    "bitnet-silu-odd": tiny.SILU | {"hidden_size": 100, "intermediate_size": 270, "head_dim": 50, "vocab_size": 259},
    "llama": tiny.LLAMA | {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "qwen3": QWEN3,
    "gemma3": GEMMA3,
}


def run(source: tiny.Synthetic, backend: Ops | str, count: int) -> tuple[list[int], list[Any]]:
    """Greedy tokens after PROMPT, and the logits that they come of: a prompt in two parts, then token by token."""
    model = tiny.load(source, backend)
    cache = tiny.new_cache(model, len(PROMPT) + count, "f16")
    compute = model.ops.compile(model, cache)
    table = np.arange(-(-(len(PROMPT) + count) // BLOCK_SIZE), dtype=np.int32)[None]
    ids, start, tokens, logits = PROMPT[:13], 0, [], []
    for _ in range(count + 1):
        size = len(ids)
        at = np.arange(start, start + size, dtype=np.int32)
        bounds, last = np.array([0, size], np.int32), np.array([size - 1], np.int32)
        logits.append(np.asarray(compute(Step(np.array(ids, np.int32), at, bounds, last, table)))[0])
        start += size
        if start == 13:
            ids = PROMPT[13:]
        else:
            tokens.append(int(logits[-1].argmax()))
            ids = tokens[-1:]
    return tokens, logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ops", [TVM, NATIVE], ids=["generated", "native"])
def test_a_compiled_model_writes_what_the_definition_writes(name: str, ops: Ops) -> None:
    source = tiny.Synthetic(MODELS[name])
    tokens, logits = run(source, ops, 12)
    assert tokens == run(source, "reference", 12)[0]
    np.testing.assert_array_equal(logits, run(source, "cpu", 12)[1])


@pytest.fixture(scope="module")
def compute() -> Any:
    model = tiny.load(tiny.Synthetic(tiny.BITNET), TVM)
    return model.ops.compile(model, tiny.new_cache(model, 64, "f32"))


def test_sequences_that_share_a_step_give_what_each_gives_alone(compute: Any) -> None:
    alone = compute(Step.whole(PROMPT, [19]))
    both = Step(
        ids=np.array(PROMPT[:5] + PROMPT, np.int32),
        positions=np.array([*range(5), *range(20)], np.int32),
        starts=np.array([0, 5, 25], np.int32),
        want=np.array([4, 24], np.int32),
        block_tables=np.array([[2, -1], [3, 1]], np.int32),
    )
    np.testing.assert_array_equal(compute(both)[1], alone[0])


@pytest.mark.parametrize(
    "change",
    [
        {"ids": [272]},
        {"ids": [-1]},
        {"positions": [64]},
        {"positions": [-1]},
        {"positions": [16]},
        {"block_tables": [[9]]},
        {"block_tables": [[-1]]},
        {"block_tables": [[3, -1]], "positions": [17]},
        {"want": [1]},
        {"want": [0, -1]},
        {"ids": [1, 2], "starts": [0, 2], "positions": [0, 64]},
    ],
)
def test_a_step_that_does_not_fit_is_refused(compute: Any, change: dict[str, Any]) -> None:
    good = {"ids": [1], "positions": [0], "starts": [0, 1], "want": [0], "block_tables": [[0]]}
    step = Step(**{name: np.array(value, np.int32) for name, value in (good | change).items()})
    with pytest.raises(ParameterError):
        compute(step)


def test_a_screened_head_gives_what_the_engine_s_gives() -> None:
    step = replace(Step.whole(PROMPT, [3, 9, 19]), top=np.array([2, 0, 1], np.int32))
    logits = []
    for ops in (NATIVE, CPU):
        model = models.load(tiny.Synthetic(tiny.BITNET), ops, head="screen")
        assert model.weights["lm_head"].screen_nbytes
        logits.append(ops.compile(model, tiny.new_cache(model, 64, "f16"))(step))
    np.testing.assert_array_equal(*logits)
    assert [int(np.isfinite(row).sum()) for row in logits[0]] == [2, 272, 1]


def test_steps_read_the_weights_of_the_opened_model_where_they_lie() -> None:
    model = tiny.load(tiny.Synthetic(tiny.BITNET), NATIVE)
    compute = model.ops.compile(model, tiny.new_cache(model, 64, "f16"))
    step = Step.whole(PROMPT, [19])
    assert compute(step).any()
    for weight in model.weights.values():
        if isinstance(weight, Dense):
            ctypes.memset(address_of(weight.data), 0, weight.nbytes)
    assert not compute(step).any()


@pytest.mark.parametrize("count", [1, None])
def test_results_that_live_at_the_same_time_share_no_memory(count: int | None) -> None:
    model = tiny.load(tiny.Synthetic(tiny.BITNET), NATIVE)
    calls = written(model, NATIVE, "f16", 64)["decode" if count else "step"].calls
    memory, live, shared = Memory(calls), dict[Any, tuple[int, int]](), 0
    for i, call in enumerate(calls[:-1]):
        read = {value for later in calls[i + 1 :] for value in later.inputs}
        dying = {value for value in call.inputs if value not in read} if call.make.func in native.IN_PLACE else set()
        for value in call.outputs:
            start, end = memory.span(value)
            over = {other for other, (first, last) in live.items() if other.shape[0] is value.shape[0]}
            over = {other for other in over if live[other][0] < end and start < live[other][1]}
            shared += len(over)
            assert over <= dying
            live[value] = (start, end)
        live = {value: place for value, place in live.items() if value in read}
    assert shared  # some are written over what they read


def test_a_compiled_model_uses_the_threads_that_it_is_given(tmp_path: Path) -> None:
    path = tiny.convert(tiny.Synthetic(tiny.BITNET | tiny.WIDE), tmp_path / "tiny.gguf")
    before = backends.set_threads(2)
    try:
        with BitNet(path, backend="tvm", threads=3):
            assert (core.threads(), use_threads("tvm", 0)) == (3, core.default_threads())
        assert use_threads("compiled (native)", 2) == core.threads() == 2
    finally:
        backends.set_threads(before)


def test_int8_caches_are_refused() -> None:
    ops: Ops = TVM
    with pytest.raises(ParameterError, match="f16"):
        ops.new_cache(1, 1, 1, 16, "int8")
