"""A context that slides: the model goes on as it would on the shortened text, and the caller's tokens are untouched."""

from __future__ import annotations

from typing import Any

import pytest
import scripted
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.engine import LLM, DraftModel, EngineConfig, PromptLookup, SamplingParams, Sequence
from bitnet.engine.sampling import sample, token_logprob
from bitnet.errors import ContextError, ParameterError
from bitnet.models import Decoder

TOKENIZER = tiny.tokenizer()
SLIDE = {"ctx_overflow": "slide", "kv": "f32"}
PROMPT = [1 + 7 * i % 250 for i in range(100)]


@pytest.fixture(scope="module")
def model() -> Decoder:
    return tiny.load(tiny.Synthetic(tiny.BITNET), "cpu" if tiny.usable_isas() else "reference")


def run(model: Any, prompts: list[list[int]], params: SamplingParams, drafter: Any = None, **config: Any) -> Any:
    llm = LLM(model, TOKENIZER, EngineConfig(**{**SLIDE, **config}), drafter)
    sequences = [llm.add_request(prompt, params) for prompt in prompts]
    texts = dict.fromkeys(sequences, "")
    while llm.busy:
        for output in llm.step():
            assert len(output.sequence) <= llm.ctx_size
            texts[output.sequence] += output.text
    assert llm.scheduler.pool.free == llm.scheduler.pool.count
    return [(sequence, texts[sequence]) for sequence in sequences]


def definition(model: Decoder, prompt: list[int], params: SamplingParams, size: int, keep: int) -> Sequence:
    """The same, by lists alone: every token is computed from the whole shortened text anew."""
    found, context = Sequence(0, list(prompt), params), list(prompt)
    if len(context) >= size:
        context = shortened(context, size, keep)
    for _ in range(params.max_tokens or 0):
        logits = tiny.logits(model, context)[-1]
        token = sample(logits, params, found.prompt_counts, found.counts, found.random.random())
        found.logprobs.append(token_logprob(logits, token, params.logprobs or 0))
        found.append(token)
        context.append(token)
        if len(context) >= size:
            context = shortened(context, size, keep)
    return found


def shortened(context: list[int], size: int, keep: int) -> list[int]:
    keep = min(keep, (size - 1) // 2)
    return context[:keep] + context[-((size - keep) // 2) :]


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 100),
    size=st.integers(2, 64),
    keep=st.integers(0, 40),
    count=st.integers(1, 90),
    chunk=st.integers(1, 40),
    seed=st.none() | st.integers(0, 5),
    penalty=st.sampled_from([1.0, 1.4]),
)
def test_a_sliding_context_is_the_shortened_text(
    model: Decoder, length: int, size: int, keep: int, count: int, chunk: int, seed: int | None, penalty: float
) -> None:
    params = SamplingParams(
        max_tokens=count,
        temperature=0 if seed is None else 1.0,
        seed=seed,
        repetition_penalty=penalty,
        logprobs=2,
        ignore_eos=True,
    )
    ((found, text),) = run(model, [PROMPT[:length]], params, ctx_size=size, ctx_keep=keep, chunk=chunk)
    expected = definition(model, PROMPT[:length], params, size, keep)
    assert (found.output, found.finish_reason) == (expected.output, "length")
    assert text == TOKENIZER.decode(expected.output)
    assert [each.token for each in found.logprobs] == expected.output
    assert [each.logprob for each in found.logprobs] == pytest.approx([e.logprob for e in expected.logprobs], abs=1e-3)
    assert found.prompt == PROMPT[:length]  # what the caller sees is all there


@pytest.mark.parametrize("kind", ["none", "lookup", "model"])
@pytest.mark.parametrize("kv_blocks", [0, 4, 9])
def test_neighbours_preemption_and_guesses_change_nothing(model: Decoder, kind: str, kv_blocks: int) -> None:
    params = SamplingParams(max_tokens=120, temperature=0.7, seed=3, ignore_eos=True, stop=("zzzz",))
    prompts = [PROMPT[i : i + length] for i, length in enumerate((5, 100, 1, 40))]
    config = {"ctx_size": 48, "kv_blocks": kv_blocks, "chunk": 20, "draft_tokens": 6}
    drafter = {
        "none": lambda: None,
        "lookup": PromptLookup,
        "model": lambda: DraftModel(model, EngineConfig(**{**SLIDE, **config}), 272),
    }[kind]()
    together = run(model, prompts, params, drafter, **config)
    alone = [run(model, [prompt], params, ctx_size=48)[0] for prompt in prompts]
    assert [(s.output, text) for s, text in together] == [(s.output, text) for s, text in alone]
    assert all(s.slid > 0 for s, _ in together)
    if kind == "model":
        assert all(s.accepted / s.drafted > 0.1 for s, _ in together)


def test_what_is_kept_is_not_computed_again() -> None:
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    engine = scripted.Scripted({9: [9] * 300})
    ((sequence, _),) = run(engine, [[9] * 10], params, ctx_size=32, ctx_keep=8)
    # Full at 32: the first 8 and the latest 12 stay, and those 12 are computed in one step.
    assert sequence.slid == 24 and sorted(engine.tokens_per_step)[-3:] == [10, 12, 12]


def test_a_context_that_slides_gives_its_blocks_back(model: Decoder) -> None:
    llm = LLM(model, TOKENIZER, EngineConfig(**SLIDE, ctx_size=64, ctx_keep=0))
    sequence = llm.add_request(PROMPT[:60], SamplingParams(max_tokens=100, temperature=0, ignore_eos=True))
    while llm.busy:
        llm.step()
        assert len(sequence.blocks) <= -(-len(sequence) // 16)


def test_without_it_a_full_context_is_the_end_and_the_error_names_the_ways_out(model: Decoder) -> None:
    llm = LLM(model, TOKENIZER, EngineConfig(ctx_size=32))
    with pytest.raises(ContextError) as caught:
        llm.add_request(PROMPT, SamplingParams())
    assert "100 tokens; the context holds 32" in caught.value.message
    assert "raise --ctx-size: this model takes 256" in caught.value.hint and "--ctx-overflow slide" in caught.value.hint


def test_the_models_own_maximum_is_not_to_be_raised(model: Decoder) -> None:
    llm = LLM(model, TOKENIZER, EngineConfig(ctx_size=100_000))
    with pytest.raises(ContextError) as caught:
        llm.add_request(PROMPT * 3, SamplingParams())
    assert "holds 256" in caught.value.message and "raise --ctx-size" not in caught.value.hint


def test_a_prompt_that_is_scored_must_fit_and_then_ends_where_the_context_does(model: Decoder) -> None:
    llm = LLM(model, TOKENIZER, EngineConfig(**SLIDE, ctx_size=32))
    with pytest.raises(ContextError):
        llm.add_request(PROMPT, SamplingParams(max_tokens=0), score_from=0)
    sequence = llm.add_request(PROMPT[:20], SamplingParams(ignore_eos=True), score_from=0)
    list(llm.run([sequence]))
    assert (len(sequence.prompt_logprobs), len(sequence), sequence.finish_reason) == (19, 32, "length")


def test_a_context_of_one_token_cannot_slide(model: Decoder) -> None:
    with pytest.raises(ParameterError, match="one token"):
        LLM(model, TOKENIZER, EngineConfig(ctx_size=1, ctx_overflow="slide"))
