"""A backend that draws tokens itself changes none of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tiny

from bitnet import backends
from bitnet.backends.base import Model, Ops, Row, Step
from bitnet.engine import LLM, DraftModel, EngineConfig, PromptLookup, SamplingParams, Sequence
from bitnet.engine.sampling import sample

PROMPTS = [[1 + (7 * i + 13 * j) % 250 for j in range(length)] for i, length in enumerate((5, 40, 1, 33, 16, 9, 21))]
END: dict[str, Any] = {"max_tokens": 20, "ignore_eos": True}
PARAMS = [
    SamplingParams(temperature=0, **END),
    SamplingParams(temperature=1.1, seed=1, **END),
    SamplingParams(temperature=0.7, seed=2, top_k=7, top_p=1, min_p=0, **END),
    SamplingParams(temperature=1.3, seed=3, top_k=0, top_p=0.97, **END),
    SamplingParams(temperature=0.9, seed=4, repetition_penalty=1.3, **END),
    SamplingParams(temperature=1.0, seed=5, logprobs=2, **END),
    SamplingParams(temperature=1.0, seed=6, logit_bias=((65, 3.0),), **END),
]
ON_HOST = {3, 4, 5, 6}  # of these, for want of a top


def drawing() -> tuple[Ops, list[int]]:
    """A backend, and the tokens that it has drawn; it leaves every fifth to the engine."""
    ops: Any = backends.make("cpu" if tiny.usable_isas() else "reference")
    plain, tokens = ops.compile, []

    def compile(model: Model, cache: Any) -> Callable[[Step], list[Row]]:
        run = plain(model, cache)

        def drawn(step: Step) -> list[Row]:
            rows: list[Row] = list(run(step))
            if step.draws is None:
                return rows
            for i, (top, (temperature, top_p, min_p, number)) in enumerate(zip(step.tops, step.draws, strict=True)):
                params = SamplingParams(temperature=temperature, top_k=int(top), top_p=top_p, min_p=min_p)
                if top and number * 1000 % 5 > 1:
                    rows[i] = sample(rows[i], params, {}, {}, number)  # type: ignore[arg-type]
                    tokens.append(rows[i])
            return rows

        return drawn

    ops.draws, ops.compile = True, compile
    return ops, tokens


def requests(ops: Ops, drafter: Any = None, abort: int | None = None, **config: Any) -> list[Sequence]:
    """One for each of PARAMS, of which `abort` is left on its way."""
    model = tiny.load(tiny.Synthetic(tiny.BITNET), ops)
    drafter = DraftModel(model, EngineConfig(ctx_size=96), 272) if drafter == "model" else drafter
    llm = LLM(model, tiny.tokenizer(), EngineConfig(**{"ctx_size": 96, **config}), drafter)
    sequences = [llm.add_request(*each) for each in zip(PROMPTS, PARAMS, strict=True)]
    while llm.busy:
        llm.step()
        if abort is not None and len(sequences[abort].output) >= 4:
            llm.abort(sequences[abort])
    return sequences


@cache
def expected() -> list[tuple[list[int], Any]]:
    return [(s.output, s.logprobs) for s in requests(backends.make("cpu" if tiny.usable_isas() else "reference"))]


@pytest.mark.parametrize("config", [{}, {"max_sequences": 3, "chunk": 7}, {"head": "full"}, {"prefix_cache": False}])
@pytest.mark.parametrize("drafter", [None, PromptLookup(), "model"], ids=["plain", "lookup", "draft model"])
def test_tokens_are_those_that_the_engine_draws(drafter: Any, config: dict[str, Any]) -> None:
    """With guesses, too: a number that a step was given and no token used is the next step's."""
    ops, tokens = drawing()
    assert [(s.output, s.logprobs) for s in requests(ops, drafter, **config)] == expected()
    assert (len(tokens) > 30) == (config.get("head") != "full")


def test_a_sequence_that_is_left_changes_no_other() -> None:
    ops, _ = drawing()
    for abort in range(len(PARAMS)):
        for i, sequence in enumerate(requests(ops, abort=abort)):
            tokens = expected()[i][0]
            assert sequence.output == (tokens[: len(sequence.output)] if i == abort else tokens)


def test_what_takes_all_logits_is_never_drawn_by_the_backend() -> None:
    """Penalties, biases, log-probabilities, and all tokens to choose from."""
    ops, tokens = drawing()
    for i in ON_HOST:
        model = tiny.load(tiny.Synthetic(tiny.BITNET), ops)
        llm = LLM(model, tiny.tokenizer(), EngineConfig(ctx_size=96))
        list(llm.run([llm.add_request(PROMPTS[i], PARAMS[i])]))
    assert not tokens
