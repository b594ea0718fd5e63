"""Models on the GPU, run on the host: what the C++ core computes, the same tokens."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import serving
import tiny
from emulated_gpu import EmulatedGPU

from bitnet import backends
from bitnet.backends.base import BLOCK_SIZE, Ops, Step, TopLogits
from bitnet.backends.cuda import CUDA
from bitnet.backends.cuda.graphs import Steps
from bitnet.engine import LLM, EngineConfig, SamplingParams
from bitnet.engine.sampling import sample
from bitnet.models import Decoder
from bitnet.quant.tensor import DenseTensor

REFERENCE = backends.make("reference")
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19]
QWEN3 = tiny.LLAMA | {"model_type": "qwen3", "head_dim": 32}
GEMMA3 = tiny.LLAMA | {
    "model_type": "gemma3_text",
    "head_dim": 24,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 7,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 40,
    "rope_local_base_freq": 5000.0,
}
MODELS = {
    "bitnet": tiny.BITNET,
    "silu": tiny.SILU,
    "llama": tiny.LLAMA | {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "odd": tiny.BITNET | {"hidden_size": 100, "intermediate_size": 270, "head_dim": 50, "vocab_size": 259},
    "qwen3": QWEN3,
    "gemma3": GEMMA3,
}


@pytest.fixture(scope="module", params=[90, 75])
def ops(request: pytest.FixtureRequest) -> CUDA:
    return CUDA(EmulatedGPU(arch=request.param))


def generated(model: Decoder, count: int, **params: Any) -> list[list[int]]:
    """Three prompts at once, read in chunks: steps of every kind, most of them replayed."""
    llm = LLM(model, tiny.tokenizer(), EngineConfig(ctx_size=64, chunk=16, max_sequences=3, kv=params.pop("kv", "f16")))
    sampling = SamplingParams(max_tokens=count, ignore_eos=True, **params)
    sequences = [llm.add_request(PROMPT[:length], sampling) for length in (3, 9, 20)]
    for _ in llm.run(sequences):
        pass
    return [sequence.output for sequence in sequences]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_the_cpu(ops: CUDA, name: str) -> None:
    source = tiny.Synthetic(MODELS[name])
    ours, cpu = (generated(tiny.load(source, each), 4, temperature=0) for each in (ops, "cpu"))
    assert ours == cpu


@pytest.mark.parametrize("kv", ["f32", "int8"])
def test_greedy_tokens_are_those_of_the_cpu_with_any_cache(ops: CUDA, kv: str) -> None:
    source = tiny.Synthetic(tiny.BITNET)
    ours, cpu = (generated(tiny.load(source, each), 3, temperature=0, kv=kv) for each in (ops, "cpu"))
    assert ours == cpu


@pytest.mark.parametrize("params", [{"seed": 1}, {"seed": 2, "top_k": 0}, {"seed": 3, "repetition_penalty": 1.3}])
def test_sampled_tokens_are_those_of_the_cpu(ops: CUDA, params: dict[str, Any]) -> None:
    source = tiny.Synthetic(tiny.BITNET)
    ours, cpu = (generated(tiny.load(source, each), 3, **params) for each in (ops, "cpu"))
    assert ours == cpu


def test_sequences_of_any_kind_share_a_step(ops: CUDA, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are drawn on the card but for those that take all logits, whose rows alone come to the host."""
    end: Any = {"max_tokens": 4, "ignore_eos": True}
    kinds = [{"temperature": 0}, {"seed": 1}, {"seed": 2, "top_k": 9, "top_p": 1, "min_p": 0}, {"seed": 3, "top_k": 0}]
    kinds += [{"seed": 4, "frequency_penalty": 0.4}, {"seed": 5, "logprobs": 2}]
    kept: list[tuple[Any, SamplingParams]] = []

    def watched(logits: Any, params: SamplingParams, *rest: Any) -> int:
        kept.append((logits, params))
        return sample(logits, params, *rest)

    monkeypatch.setattr("bitnet.engine.llm.sample", watched)
    found = []
    for each in (ops, "cpu"):
        kept.clear()
        model = tiny.load(tiny.Synthetic(tiny.BITNET), each)
        llm = LLM(model, tiny.tokenizer(), EngineConfig(ctx_size=64, chunk=16, max_sequences=len(kinds)))
        sequences = [llm.add_request(PROMPT[i:10], SamplingParams(**end, **kind)) for i, kind in enumerate(kinds)]
        list(llm.run(sequences))
        found.append([sequence.output for sequence in sequences])
        on_host = len(kept)
        assert each == "cpu" or all(params.top == 0 and len(logits) == 272 for logits, params in kept)
        assert on_host == 4 * (6 if each == "cpu" else 3)
    assert found[0] == found[1]


def test_a_server_gives_the_tokens_of_the_cpu_while_others_leave() -> None:
    """Streams side by side, one of them broken off."""
    prompts = ["the end", "an inn", "in the rain"]
    bodies = [{"prompt": prompt, "max_tokens": 6, "ignore_eos": True, "seed": 3} for prompt in prompts]
    answers = []
    for backend in (CUDA(EmulatedGPU(arch=75)), backends.make("cpu")):
        model = tiny.load(tiny.Synthetic(tiny.BITNET), backend)

        def ask(body: dict[str, Any], client: serving.Client) -> Any:
            return client.post("/v1/completions", json=body).json()["choices"]

        with serving.serving(serving.stand(model, ctx_size=64)) as client, ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask, body, client) for body in bodies]
            with client.stream("POST", "/v1/completions", json=bodies[0] | {"max_tokens": 50, "stream": True}) as left:
                next(left.iter_lines())
            answers.append([each.result() for each in asked])
    assert answers[0] == answers[1]


@pytest.mark.parametrize("name", ["bitnet", "gemma3"])
def test_logits_are_close_to_the_definitions(ops: CUDA, name: str) -> None:
    source = tiny.Synthetic(MODELS[name])
    ours, expected = (tiny.logits(tiny.load(source, each), PROMPT) for each in (ops, "reference"))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5e-5)


def test_logits_are_the_same_bits_however_the_prompt_is_cut(ops: CUDA) -> None:
    """Also where its parts go through different kernels: few rows, many rows, replayed ones."""
    model = tiny.load(tiny.Synthetic(tiny.BITNET), ops)
    whole = tiny.logits(model, PROMPT)
    for chunk in (1, 3, 11):
        cache, table = tiny.new_cache(model, len(PROMPT)), np.arange(2, dtype=np.int32)[None]
        run, parts = ops.compile(model, cache), []
        for start in range(0, len(PROMPT), chunk):
            ids = np.asarray(PROMPT[start : start + chunk], np.int32)
            at = np.arange(len(ids), dtype=np.int32)
            parts.append(run(Step(ids, at + np.int32(start), np.array([0, len(ids)], np.int32), at, table)))
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_sequences_beside_each_other_change_nothing(ops: CUDA) -> None:
    model = tiny.load(tiny.Synthetic(tiny.BITNET), ops)
    prompts = [PROMPT[i : i + 4 + i] for i in range(7)]
    alone = [tiny.logits(model, prompt)[-1] for prompt in prompts]
    starts = np.cumsum([0, *map(len, prompts)]).astype(np.int32)
    positions = np.concatenate([np.arange(len(prompt), dtype=np.int32) for prompt in prompts])
    tables = np.arange(7, dtype=np.int32)[::-1, None]
    step = Step(np.concatenate(prompts).astype(np.int32), positions, starts, starts[1:] - 1, tables)
    cache = model.ops.new_cache(2, 7, 2, 16, "f32")
    np.testing.assert_array_equal(ops.compile(model, cache)(step), alone)


def test_decoding_is_replayed(ops: CUDA) -> None:
    """And a graph serves any number of sequences up to its own."""
    model = tiny.load(tiny.Synthetic(tiny.BITNET), ops)
    cache = tiny.new_cache(model, 64)
    run = ops.compile(model, cache)
    assert isinstance(run, Steps)

    def decode(count: int) -> Any:
        rows = np.arange(count, dtype=np.int32)
        step = Step(rows + 5, rows * 0, np.arange(count + 1, dtype=np.int32), rows, rows[:, None], top=1)
        return run(step)

    first = decode(3)
    ops.device.launches.clear()
    again, fewer = decode(4), decode(3)
    assert set(run._graphs) == {(4, 16)}
    assert [[*row.ids] for row in first] == [[*row.ids] for row in again[:3]] == [[*row.ids] for row in fewer]
    attend = "attention_splits" if ops.device.arch >= 80 else "attend_splits"
    layer = ["quantise_rows", "ternary_gemv", "store_rows", attend, "join_splits"]
    layer += ["quantise_rows", "ternary_gemv"] * 3
    assert ops.device.launches[: 1 + 2 * len(layer)] == ["embed_dense", *layer, *layer]
    assert all(isinstance(row, TopLogits) for row in first)


def test_a_graph_does_not_disturb_what_is_computed_beside_it(ops: CUDA) -> None:
    """Its memory is its own, also where a value of another step is still held."""
    model = tiny.load(tiny.Synthetic(tiny.BITNET), ops)
    cache = tiny.new_cache(model, 64)
    run, step = ops.compile(model, cache), Step.whole([7], want=[0])
    before = run(step)
    held = ops.array(model(Step.whole(PROMPT), tiny.new_cache(model, len(PROMPT))))
    bits = held.numpy()
    np.testing.assert_array_equal(run(step), before)
    np.testing.assert_array_equal(held.numpy(), bits)


def test_a_graph_outlives_a_larger_cache() -> None:
    """Which brings longer tables of angles: what becomes of the old ones must not reach the graph that has them."""
    gpu = EmulatedGPU()
    model = tiny.load(tiny.Synthetic(tiny.BITNET), CUDA(gpu))
    run, first = model.ops.compile(model, tiny.new_cache(model, 16)), Step.whole([7], want=[0])
    second = Step(first.ids + 40, first.positions + 1, first.starts, first.want, first.block_tables)
    run(first)
    before = run(second)
    model.ops.compile(model, tiny.new_cache(model, 160))(first)
    gpu.poison_free()
    np.testing.assert_array_equal(run(second), before)


def test_equal_logits_beyond_the_room_come_whole(ops: CUDA) -> None:
    model = tiny.load(tiny.Synthetic(tiny.BITNET | {"vocab_size": 600}), ops)
    model.weights["lm_head"] = ops.put(DenseTensor(np.zeros((600, 64), np.float32)))  # type: ignore[index]
    cache = tiny.new_cache(model, 16)
    step = Step.whole([7], want=[0])
    found = ops.compile(model, cache)(Step(step.ids, step.positions, step.starts, step.want, step.block_tables, 1))
    np.testing.assert_array_equal(found, np.zeros((1, 600), np.float32))


def test_positions_without_a_block_are_refused(ops: CUDA) -> None:
    model = tiny.load(tiny.Synthetic(tiny.BITNET), ops)
    run = ops.compile(model, tiny.new_cache(model, 16))
    at = np.zeros(1, np.int32)
    for tables in ([[-1]], [[5]]):
        with pytest.raises(ValueError, match="block"):
            run(Step(at, at, np.array([0, 1], np.int32), at, np.array(tables, np.int32)))


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8"])
@pytest.mark.parametrize("window", [0, 20, 130])
@pytest.mark.parametrize("chunk, rows", [(1, 1000), (150, 1000), (150, 40)])
def test_attention_over_a_paged_cache(
    ops: CUDA, monkeypatch: pytest.MonkeyPatch, dtype: str, window: int, chunk: int, rows: int
) -> None:
    """Over several splits, with keys and values shared by heads whose number is no power of two; of `rows` rows at
    once."""
    monkeypatch.setattr("bitnet.backends.cuda.ops.PARTS", rows * 4 * 6 * 20)
    random = np.random.default_rng(chunk)
    lengths, heads, kv_heads, head_dim = [270, 9], 6, 2, 20
    blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    order = iter(random.permutation(sum(blocks)))
    tables = np.full((2, max(blocks)), -1, np.int32)
    for row, count in zip(tables, blocks, strict=True):
        row[:count] = list(itertools.islice(order, count))
    caches = [each.new_cache(1, sum(blocks), kv_heads, head_dim, dtype) for each in (ops, REFERENCE)]
    for first, last in ((0, 265), (265, 265 + chunk)) if chunk == 1 else ((0, chunk), (chunk, 270)):
        spans = [(b, first, min(last, length)) for b, length in enumerate(lengths) if first < length]
        starts = np.cumsum([0] + [end - start for _, start, end in spans]).astype(np.int32)
        positions = np.concatenate([np.arange(start, end, dtype=np.int32) for _, start, end in spans])
        step = Step(positions, positions, starts, positions[:0], tables[[b for b, _, _ in spans]])
        q = random.standard_normal((len(positions), heads * head_dim), np.float32)
        k, v = (random.standard_normal((len(positions), kv_heads * head_dim), np.float32) for _ in range(2))

        def attend(each: Ops, cache: Any, put: Any, q: Any = q, k: Any = k, v: Any = v, step: Step = step) -> Any:
            return each.to_host(each.attention(put(q), put(k), put(v), cache, 0, step, head_dim, window))

        ours, expected = attend(ops, caches[0], ops.device.put), attend(REFERENCE, caches[1], np.asarray)
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-6 * np.abs(expected).max() + 2e-6)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["key", "value"])
def test_what_is_not_a_number_does_not_reach_the_rows_before_it(
    ops: CUDA, dtype: str, value: float, where: str
) -> None:
    """Nor those of whose window it is out; rows and positions of one program."""
    random = np.random.default_rng(0)
    rows, heads, head_dim, bad, window = 60, 2, 24, 21, 30
    q, k, v = (random.standard_normal((rows, heads * head_dim), np.float32) for _ in range(3))
    step = Step.whole(range(rows))

    def attend(k: Any, v: Any) -> Any:
        cache, put = ops.new_cache(1, 4, heads, head_dim, dtype), ops.device.put
        return ops.to_host(ops.attention(put(q), put(k), put(v), cache, 0, step, head_dim, window))

    clean = attend(k, v)
    (k if where == "key" else v)[bad, 5] = value
    ours = attend(k, v)
    sees = np.arange(rows)
    sees = (sees >= bad) & (sees < bad + window)
    np.testing.assert_array_equal(ours[~sees], clean[~sees])
    if np.isnan(value) or where == "value":
        assert not np.isfinite(ours[sees, :head_dim]).all(axis=1).any()
    np.testing.assert_array_equal(ours[:, head_dim:], clean[:, head_dim:])


def test_heads_that_share_more_than_a_program_has(ops: CUDA) -> None:
    """40 of them have one key, of 144 numbers."""
    random = np.random.default_rng(0)
    heads, head_dim = 40, 144
    q = random.standard_normal((3, heads * head_dim), np.float32)
    k, v = (random.standard_normal((3, head_dim), np.float32) for _ in range(2))

    def attend(each: Ops, put: Any) -> Any:
        cache = each.new_cache(1, 1, 1, head_dim, "f32")
        return each.to_host(each.attention(put(q), put(k), put(v), cache, 0, Step.whole(range(3)), head_dim))

    expected = attend(REFERENCE, np.asarray)
    np.testing.assert_allclose(attend(ops, ops.device.put), expected, rtol=0, atol=4e-6)
