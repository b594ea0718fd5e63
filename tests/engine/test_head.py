"""A screened output head changes no token, whatever is asked of the engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitnet import backends
from bitnet.engine import LLM, EngineConfig, SamplingParams, Sequence
from bitnet.engine.runner import MOST_TOP, Runner, needed_logits
from bitnet.engine.sampling import sample
from bitnet.engine.scheduler import Chunk
from bitnet.engine.sequence import NEVER
from bitnet.errors import BitNetError, ParameterError
from bitnet.formats.checkpoint import TensorInfo
from bitnet.models import Decoder, load, memory
from bitnet.models.load import wants_screen
from bitnet.quant.tensor import DenseTensor

pytestmark = pytest.mark.skipif(not tiny.usable_isas(), reason="the C++ core is not built")
PROMPTS = [[1 + (7 * i + 13 * j) % 250 for j in range(length)] for i, length in enumerate((5, 40, 1, 17))]
VOCAB = 2000
LARGE = tiny.BITNET | {"vocab_size": VOCAB}
PARAMS = {
    "greedy": SamplingParams(temperature=0),
    "top-k": SamplingParams(temperature=1.0, seed=3),
    "hot": SamplingParams(temperature=5.0, top_k=64, top_p=1, min_p=0, seed=5),
    "one": SamplingParams(temperature=1.0, top_k=1, seed=3),
    "all": SamplingParams(temperature=1.5, top_k=0, top_p=0.98, min_p=0, seed=42),
    "beyond": SamplingParams(temperature=1.5, top_k=MOST_TOP + 1, seed=42),
    "penalised": SamplingParams(temperature=1.0, seed=7, repetition_penalty=1.3, frequency_penalty=0.5),
    "penalised-greedy": SamplingParams(temperature=0, presence_penalty=2.0),
    "logprobs": SamplingParams(temperature=0, logprobs=3),
}
PARAMS = {name: replace(params, max_tokens=16, ignore_eos=True) for name, params in PARAMS.items()}
SCREENED = {"greedy": 1, "top-k": 40, "hot": 64, "one": 1}


def make(head: str, dtype: str = "F16", tied: bool = True, **weights: Any) -> Decoder:
    source = tiny.Synthetic(LARGE | {"tie_word_embeddings": tied})
    for name in [each for each in source.weights if "embed" in each or "lm_head" in each]:
        rows = source.weights[name].dequantize()
        rows[700:760] = rows[40:100]  # equal logits, of which the lower id wins
        rows[1999] = rows[3]
        rows[800:900] = 0
        source.weights[name] = stored(rows, dtype)
    return load(source, backends.make("cpu"), head=head)


def stored(rows: Any, dtype: str) -> DenseTensor:
    if dtype == "BF16":
        return DenseTensor((rows.view(np.uint32) >> 16).astype(np.uint16), "BF16")
    if dtype == "Q8_0":
        blocks = rows.reshape(len(rows), -1, 32)
        scales = np.maximum(np.abs(blocks).max(2) / 127, 1e-4).astype(np.float16)
        codes = np.rint(blocks / scales[..., None].astype(np.float32)).clip(-127, 127).astype(np.int8)
        return DenseTensor(codes.reshape(rows.shape), "Q8_0", scales)
    return DenseTensor(rows.astype({"F32": np.float32, "F16": np.float16}[dtype]), dtype)


def generate(model: Decoder, params: list[SamplingParams], head: str = "auto", **config: Any) -> list[Sequence]:
    llm = LLM(model, tiny.tokenizer(VOCAB), EngineConfig(ctx_size=128, head=head, **config))
    sequences = [llm.add_request(p, each) for p, each in zip(PROMPTS, params, strict=True)]
    for _ in llm.run(sequences):
        pass
    return sequences


def tokens(sequences: list[Sequence]) -> list[list[int]]:
    return [each.output for each in sequences]


@pytest.mark.parametrize("isa", tiny.usable_isas())
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
def test_screened_tokens_are_the_full_heads(isa: str, dtype: str) -> None:
    with tiny.isa(isa):
        full, screened = make("full", dtype), make("screen", dtype)
        assert screened.weights["lm_head"].screen_nbytes and not full.weights["lm_head"].screen_nbytes
        for name in ("greedy", "top-k", "hot"):
            params = [replace(PARAMS[name], seed=seed) for seed in range(4)]
            assert tokens(generate(screened, params)) == tokens(generate(full, params)), name


@pytest.fixture(scope="module")
def models() -> tuple[Decoder, Decoder]:
    return make("full"), make("screen")


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("together", [1, 4])
def test_every_way_of_sampling(models: tuple[Decoder, Decoder], name: str, together: int) -> None:
    full, screened = (generate(m, [PARAMS[name]] * 4, max_sequences=together, chunk=24) for m in models)
    assert tokens(full) == tokens(screened)
    assert [each.logprobs for each in full] == [each.logprobs for each in screened]


def test_neighbours_that_need_other_logits_change_nothing(models: tuple[Decoder, Decoder]) -> None:
    for names in (["greedy", "top-k", "hot", "one"], ["greedy", "all", "penalised", "logprobs"]):
        params = [PARAMS[name] for name in names]
        assert tokens(generate(models[1], params)) == tokens(generate(models[0], params, max_sequences=1))


def test_equal_logits_give_the_lowest_id() -> None:
    source = tiny.Synthetic(LARGE)
    name = next(each for each in source.weights if "embed" in each)
    source.weights[name] = DenseTensor(np.repeat(source.weights[name].dequantize()[:20], 100, axis=0), "F32")
    found = generate(load(source, backends.make("cpu"), head="screen"), [PARAMS["greedy"]] * 4)
    assert all(token % 100 == 0 for each in found for token in each.output)


def test_an_untied_head_is_screened_too() -> None:
    full, screened = make("full", tied=False), make("screen", tied=False)
    assert not screened.weights["embed_tokens"].screen_nbytes
    for name in ("greedy", "top-k"):
        assert tokens(generate(screened, [PARAMS[name]] * 4)) == tokens(generate(full, [PARAMS[name]] * 4))


def test_a_scored_prompt_gets_all_logits(models: tuple[Decoder, Decoder]) -> None:
    found = []
    for model in models:
        llm = LLM(model, tiny.tokenizer(VOCAB), EngineConfig(ctx_size=128))
        sequence = llm.add_request(PROMPTS[1], PARAMS["greedy"], score_from=0)
        for _ in llm.run([sequence]):
            pass
        found.append((sequence.output, sequence.prompt_logprobs))
    assert found[0] == found[1] and len(found[0][1]) == len(PROMPTS[1]) - 1


def test_logits_that_are_not_numbers_are_found() -> None:
    source = tiny.Synthetic(LARGE)
    name = next(each for each in source.weights if "embed" in each)
    rows = source.weights[name].dequantize()
    rows[1234, 5] = np.nan  # no token of the prompts, so only its logit is spoilt
    source.weights[name] = DenseTensor(rows, "F32")
    for head in ("full", "screen"):
        with pytest.raises(BitNetError, match="not numbers"):
            generate(load(source, backends.make("cpu"), head=head), [PARAMS["greedy"]] * 4)


def chunk(params: SamplingParams, start: int = 0, end: int = 4, score_from: int = NEVER) -> Chunk:
    return Chunk(Sequence(0, [1, 2, 3, 4], params, score_from), start, end)


def test_as_many_logits_are_computed_as_the_sequences_need() -> None:
    assert {name: needed_logits([chunk(params)]).tolist() for name, params in PARAMS.items()} == {
        name: [SCREENED.get(name, 0)] for name in PARAMS
    }
    greedy, hot, everything = (chunk(PARAMS[name]) for name in ("greedy", "hot", "all"))
    assert needed_logits([greedy, hot, everything]).tolist() == [1, 64, 0]  # each row by itself
    assert needed_logits([greedy, chunk(PARAMS["all"], end=2)]).tolist() == [1]  # an unfinished prompt wants no logits
    assert needed_logits([chunk(PARAMS["greedy"], score_from=0), hot]).tolist() == [0, 0, 0, 0, 64]


def test_only_the_needed_logits_reach_the_sampler(models: tuple[Decoder, Decoder]) -> None:
    computed = {}
    for head in ("auto", "full"):
        c = chunk(PARAMS["greedy"])
        c.sequence.blocks = [0]
        computed[head] = int(np.isfinite(Runner(models[1], 4, "f32", head).run([c])[0]).sum())
    assert computed["full"] == VOCAB and computed["auto"] < VOCAB // 4


def test_a_row_that_needs_all_logits_does_not_make_others_have_them(models: tuple[Decoder, Decoder]) -> None:
    names = ["greedy", "all", "one", "logprobs", "hot"]
    chunks = [chunk(PARAMS[name]) for name in names]
    for block, each in enumerate(chunks):
        each.sequence.blocks = [block]
    parts = Runner(models[1], 8, "f32").run(chunks)
    full = Runner(models[0], 8, "f32").run(chunks)
    for name, part, expected in zip(names, parts, full, strict=True):
        there = np.isfinite(part)
        np.testing.assert_array_equal(part[there], expected[there])
        assert there.all() if name in ("all", "logprobs") else there.sum() < VOCAB // 2


@settings(max_examples=200, deadline=None)
@example(seed=33459, top_k=2, temperature=0.1, top_p=1.0, min_p=0.0, draw=0.0)  # just two are left
@given(
    seed=st.integers(0, 2**32 - 1),
    top_k=st.integers(1, 64),
    temperature=st.sampled_from([1e-3, 0.1, 0.8, 1.0, 5.0, 100.0]),
    top_p=st.sampled_from([0.1, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_among_the_likeliest_is_the_draw_among_all(
    seed: int, top_k: int, temperature: float, top_p: float, min_p: float, draw: float
) -> None:
    random = np.random.default_rng(seed)
    logits = np.round(random.standard_normal(500) * 4, int(random.integers(0, 7))).astype(np.float32)  # with ties
    least = np.sort(logits)[-top_k - int(random.integers(0, 100))]
    screened = np.where(logits >= least, logits, np.float32(-np.inf))
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    assert sample(screened, params, {}, {}, draw) == sample(logits, params, {}, {}, draw)


@pytest.mark.parametrize(
    "dtype, rows, free, made",
    [
        ("F16", 128256, 10**9, True),
        ("F16", 128256, 3 * 10**8, False),  # the weights take all of it
        ("F16", 200, 10**9, False),
        ("Q8_0", 128256, 10**9, False),
        ("BF16", 32002, 10**9, True),
    ],
)
def test_auto_makes_a_screen_where_it_pays_and_fits(
    monkeypatch: pytest.MonkeyPatch, dtype: str, rows: int, free: int, made: bool
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: free)
    info = TensorInfo("lm_head.weight", (rows, 2560), dtype, 0)
    assert wants_screen(info, "auto", needed=10**8) is made
    assert wants_screen(info, "screen", needed=10**8)
    assert not wants_screen(info, "full", needed=10**8)


def test_the_reference_needs_no_screen() -> None:
    model = load(tiny.Synthetic(LARGE), backends.make("reference"), head="screen")
    assert isinstance(model.weights["lm_head"], DenseTensor)


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ParameterError, match="'auto', 'full' or 'screen'"):
        EngineConfig(head="half")
