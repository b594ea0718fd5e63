"""Nothing but the prompt, the parameters and the seed decides which tokens come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny

from bitnet import backends
from bitnet.engine import LLM, EngineConfig, SamplingParams
from bitnet.models import Decoder

PROMPTS = [[1 + (7 * i + 13 * j) % 250 for j in range(length)] for i, length in enumerate((5, 40, 1, 17, 33, 16))]
PARAMS = {
    "greedy": SamplingParams(max_tokens=20, temperature=0, ignore_eos=True),
    "seeded": SamplingParams(max_tokens=20, temperature=1.5, top_k=0, top_p=0.98, min_p=0, seed=42, ignore_eos=True),
    "penalised": SamplingParams(
        max_tokens=20, temperature=1.0, seed=7, repetition_penalty=1.3, frequency_penalty=0.5, ignore_eos=True
    ),
}
ALONE = {"max_sequences": 1, "chunk": 512}


@pytest.fixture(scope="module", params=["reference", *tiny.usable_isas()])
def model(request: pytest.FixtureRequest) -> Iterator[Decoder]:
    with tiny.isa(request.param):
        ops = backends.make("reference" if request.param == "reference" else "cpu")
        yield tiny.load(tiny.Synthetic(tiny.BITNET), ops)


def generate(
    model: Decoder, params: SamplingParams, prompts: list[list[int]] = PROMPTS, **config: Any
) -> list[list[int]]:
    llm = LLM(model, tiny.tokenizer(), EngineConfig(ctx_size=128, **config))
    sequences = [llm.add_request(prompt, params) for prompt in prompts]
    for _ in llm.run(sequences):
        pass
    assert llm.scheduler.pool.free == llm.scheduler.pool.count
    return [sequence.output for sequence in sequences]


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("chunk", [1, 3, 16, 512])
def test_chunked_prefill_gives_the_same_tokens(model: Decoder, params: SamplingParams, chunk: int) -> None:
    assert generate(model, params, max_sequences=1, chunk=chunk) == generate(model, params, **ALONE)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("max_sequences", [2, 6])
def test_neighbours_do_not_change_the_tokens(model: Decoder, params: SamplingParams, max_sequences: int) -> None:
    assert generate(model, params, max_sequences=max_sequences, chunk=24) == generate(model, params, **ALONE)


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("kv_blocks", [4, 7, 12])
def test_preempted_sequences_go_on_with_the_same_tokens(model: Decoder, params: SamplingParams, kv_blocks: int) -> None:
    tokens = generate(model, params, max_sequences=6, chunk=20, kv_blocks=kv_blocks)
    assert tokens == generate(model, params, **ALONE)


@pytest.mark.parametrize("kv", ["f16", "f32", "int8"])
def test_a_cache_of_any_type_is_as_deterministic(model: Decoder, kv: str) -> None:
    tokens = generate(model, PARAMS["seeded"], kv=kv, max_sequences=4, chunk=9)
    assert tokens == generate(model, PARAMS["seeded"], kv=kv, **ALONE)


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_does_not_change_the_tokens(model: Decoder, threads: int) -> None:
    core = pytest.importorskip("bitnet._core")
    before = core.threads() if hasattr(core, "threads") else core.default_threads()
    core.set_threads(1)
    one = generate(model, PARAMS["seeded"], max_sequences=4)
    core.set_threads(threads)
    try:
        assert generate(model, PARAMS["seeded"], max_sequences=4) == one
    finally:
        core.set_threads(before)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_others(model: Decoder) -> None:
    drawn = [
        generate(
            model, SamplingParams(max_tokens=20, temperature=2.0, top_k=0, seed=seed, ignore_eos=True), PROMPTS[:2]
        )
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_requests_that_arrive_while_others_run_change_nothing(model: Decoder) -> None:
    llm = LLM(model, tiny.tokenizer(), EngineConfig(ctx_size=128, max_sequences=3, chunk=16))
    sequences = []
    for prompt in PROMPTS:
        sequences.append(llm.add_request(prompt, PARAMS["seeded"]))
        for _ in range(3):
            llm.step()
    for _ in llm.run(sequences):
        pass
    assert [sequence.output for sequence in sequences] == generate(model, PARAMS["seeded"], **ALONE)
