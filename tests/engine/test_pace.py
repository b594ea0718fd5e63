"""Steps that read as much of prompts as fits into a quarter of a second; how prompts are cut changes nothing."""

from __future__ import annotations

import random

import pytest
import scripted
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.engine import LLM, EngineConfig, PromptLookup, SamplingParams, Sequence
from bitnet.engine.pace import GOAL, LEAST, Pace

PROMPTS = [[1 + (7 * i + 13 * j) % 250 for j in range(length)] for i, length in enumerate((5, 90, 1, 33, 64))]


class Erratic(Pace):
    """Reads some other number of tokens in each step, whatever was measured."""

    def __init__(self, seed: int, most: int) -> None:
        super().__init__(most)
        self._random = random.Random(seed)

    def learn(self, tokens: int, seconds: float) -> None:
        self.tokens = self._random.choice((1, 2, 3, 15, 16, 17, self.most))


def generate(pace: Pace | None, params: SamplingParams, drafts: bool = False, **config: object) -> list[Sequence]:
    model = tiny.load(tiny.Synthetic(tiny.BITNET), "cpu" if tiny.usable_isas() else "reference")
    llm = LLM(model, tiny.tokenizer(), EngineConfig(**{"ctx_size": 128, **config}), PromptLookup() if drafts else None)  # type: ignore[arg-type]
    pending = sequences = [llm.add_request(prompt, params) for prompt in PROMPTS]
    while pending:
        _, finished = llm.advance(pending, pace)
        pending = [each for each in pending if each not in finished]
    return sequences


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    chunk=st.integers(1, 40),
    max_sequences=st.integers(1, 5),
    kv=st.sampled_from(["f16", "f32", "int8"]),
    drafts=st.booleans(),
    score=st.booleans(),
)
def test_however_prompts_are_cut_the_tokens_are_the_same(
    seed: int, chunk: int, max_sequences: int, kv: str, drafts: bool, score: bool
) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.3, seed=3, logprobs=2 if score else None, ignore_eos=True)
    found = generate(Erratic(seed, chunk), params, drafts, chunk=chunk, max_sequences=max_sequences, kv=kv)
    whole = generate(None, params, max_sequences=1, kv=kv)
    assert [(each.output, each.logprobs) for each in found] == [(each.output, each.logprobs) for each in whole]


@settings(max_examples=200)
@given(
    per_token=st.floats(1e-6, 1),
    per_step=st.floats(0, 1),
    most=st.integers(1, 2000),
)
def test_steps_come_to_last_as_long_as_they_should(per_token: float, per_step: float, most: int) -> None:
    """On a machine whose steps take a fixed time and some for each token."""
    pace = Pace(most)
    for _ in range(400):
        assert 1 <= pace.tokens <= most
        pace.learn(pace.tokens, per_step + per_token * pace.tokens)
    fitting = (GOAL - per_step) / per_token
    if LEAST < fitting < most and per_step < 0.8 * GOAL:
        assert pace.tokens == pytest.approx(fitting, rel=0.25, abs=2)
    elif fitting >= most and per_step < 0.8 * GOAL:
        assert pace.tokens >= min(most, max(LEAST, int(0.8 * most)))
    elif fitting < LEAST / 2:
        assert pace.tokens == min(LEAST, most)


def test_steps_without_prompts_teach_nothing() -> None:
    pace = Pace(512)
    pace.learn(16, 0.016)
    tokens = pace.tokens
    pace.learn(0, 10.0)
    assert pace.tokens == tokens == 250


def test_a_step_reads_no_more_than_its_pace_but_every_sequence_gets_its_token() -> None:
    llm = scripted.engine("y" * 200, chunk=64, max_sequences=4)
    ids = tiny.tokenizer().encode("A", add_special=False)
    params = SamplingParams(max_tokens=200, temperature=0)
    short = [llm.add_request(ids, params) for _ in range(3)]
    llm.advance(short)
    long = llm.add_request(ids * 190, params)
    pace = Erratic(0, 64)
    while long.computed < 190:
        before, computed, tokens = [len(each.output) for each in short], long.computed, pace.tokens
        llm.advance(short, pace)
        assert [len(each.output) for each in short] == [count + 1 for count in before]
        assert long.computed == computed + min(tokens, 61, 190 - computed)
