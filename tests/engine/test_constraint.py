"""What a sequence may say, biases and deadlines: they hold with and without guesses, and bind nobody else."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import scripted
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.api import sampling_params
from bitnet.engine import LLM, Drafter, EngineConfig, PromptLookup, SamplingParams, Sequence
from bitnet.engine.sampling import sample
from bitnet.errors import BitNetError, ParameterError

TOKENIZER = tiny.tokenizer()
EOS = TOKENIZER.eos_id
VOCAB = 272
PROMPTS = [[1 + (7 * i + 13 * j) % 250 for j in range(length)] for i, length in enumerate((5, 40, 1))]


class Classes:
    """Each token must be of the next residue class modulo `modulus`; complete after `count`.

    short: a mask that leaves the last ids out.
    """

    def __init__(self, modulus: int, count: int = 1000, short: int = 0) -> None:
        self.modulus, self.count, self.size, self.said = modulus, count, VOCAB - short, list[int]()

    @property
    def stopped(self) -> bool:
        return len(self.said) >= self.count

    def mask(self) -> Any:
        return np.arange(self.size) % self.modulus == len(self.said) % self.modulus

    def accept(self, token: int) -> None:
        assert self.mask()[token]
        self.said.append(token)


def model() -> Any:
    return tiny.load(tiny.Synthetic(tiny.BITNET), "cpu" if tiny.usable_isas() else "reference")


MODEL = model()


def run(
    params: SamplingParams, constraints: list[Any], drafter: Drafter | None = None, **config: Any
) -> list[Sequence]:
    llm = LLM(MODEL, TOKENIZER, EngineConfig(**{"ctx_size": 128, **config}), drafter)
    sequences = [llm.prepare(p, params, constraint=c) for p, c in zip(PROMPTS, constraints, strict=True)]
    for sequence in sequences:
        llm.add(sequence)
    for _ in llm.run(sequences):
        pass
    return sequences


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(20),
    temperature=st.sampled_from([0, 0.8, 2.0]),
    top_k=st.sampled_from([0, 1, 40]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    logit_bias=st.sampled_from([(), ((3, 5.0), (6, -100.0)), tuple((i, 100.0) for i in range(0, 20))]),
    logprobs=st.sampled_from([None, 2]),
    seed=st.integers(0, 3),
    ignore_eos=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(params=PARAMS, modulus=st.integers(1, 9), kind=st.sampled_from(["lookup", "right", "half"]))
def test_guesses_change_no_token_of_a_constrained_text(params: SamplingParams, modulus: int, kind: str) -> None:
    alone = run(params, [Classes(modulus), None, Classes(modulus + 1)], max_sequences=1)
    scripts = {each.prompt[0]: each.prompt + each.output for each in alone}
    drafter = PromptLookup() if kind == "lookup" else scripted.Guesses(scripts, wrong=0.0 if kind == "right" else 0.5)
    constraints = [Classes(modulus), None, Classes(modulus + 1)]
    found = run(params, constraints, drafter, draft_tokens=4)
    assert [(s.output, s.logprobs, s.finish_reason) for s in found] == [
        (s.output, s.logprobs, s.finish_reason) for s in alone
    ]
    for sequence, constraint in zip(found, constraints):
        if constraint is not None:
            assert constraint.said == sequence.output  # guesses that were wrong never reached it
    if kind == "right" and params.ignore_eos:
        assert sum(each.accepted for each in found) > 20


def test_a_constraint_that_is_satisfied_ends_the_text_and_all_of_it_is_shown() -> None:
    llm = scripted.engine("ab###cdef")
    ids = TOKENIZER.encode("A", add_special=False)

    class Anything(Classes):
        def mask(self) -> Any:
            return np.ones(VOCAB, np.bool_)

    params = SamplingParams(temperature=0, stop=("####",), max_tokens=50)
    sequence = llm.prepare(ids, params, constraint=Anything(1, count=5))
    llm.add(sequence)
    assert "".join(output.text for output in llm.run([sequence])) == "ab###"
    assert sequence.finish_reason == "stop"


def test_the_likeliest_allowed_token_is_taken_and_ids_beyond_the_mask_never() -> None:
    logits = tiny.logits(MODEL, PROMPTS[0], "f16")[-1]
    free, bound = (
        run(SamplingParams(temperature=0, max_tokens=1), [c, None, None])[0] for c in (None, Classes(7, short=100))
    )
    allowed = [i for i in range(VOCAB - 100) if i % 7 == 0]
    assert bound.output == [max(allowed, key=lambda i: (logits[i], -i))] != free.output


class Faulty(Classes):
    def __init__(self, what: str) -> None:
        super().__init__(3)
        self.what = what

    def mask(self) -> Any:
        if self.what == "mask":
            raise KeyError("a bug")
        return super().mask() & (self.what != "nothing" or len(self.said) < 3)

    def accept(self, token: int) -> None:
        if self.what == "accept":
            raise RuntimeError("a bug")
        super().accept(token)


@pytest.mark.parametrize("what", ["mask", "accept", "nothing"])
def test_a_constraint_that_fails_ends_its_own_sequence_only(what: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    llm = LLM(MODEL, TOKENIZER, EngineConfig(ctx_size=128))
    sequences = [llm.prepare(p, params, constraint=c) for p, c in zip(PROMPTS, [None, Faulty(what), Classes(2)])]
    for sequence in sequences:
        llm.add(sequence)
    with pytest.raises(BitNetError, match="allows no token" if what == "nothing" else "constraint failed: .*a bug"):
        list(llm.run(sequences))
    assert [each.finish_reason for each in sequences] == ["length", "error", "length"]
    assert llm.scheduler.pool.free == llm.scheduler.pool.count


def test_biases_are_added_first() -> None:
    logits = np.array([1, 2, 3, 4], np.float32)
    greedy = SamplingParams(temperature=0, logit_bias=((1, 2.5), (3, -100), (1, -1), (0, 2)))
    assert sample(logits, greedy, {}, {}, 0.5) == 1  # 3, 3.5, 3, -96
    assert sample(logits, greedy, {}, {}, 0.5, np.array([True, False, True, True])) == 0
    penalised = SamplingParams(temperature=0, logit_bias=((1, 2.5),), repetition_penalty=2)
    assert sample(logits, penalised, {1: 1}, {}, 0.5) == 3  # (2 + 2.5) / 2 < 4


@pytest.mark.parametrize(
    "bias", [((0, 101),), ((0, float("nan")),), ((0, float("-inf")),), ((0.5, 1),), ((0,),), 3, ("ab",), ((0, "1"),)]
)
def test_biases_that_are_none_are_refused(bias: Any) -> None:
    with pytest.raises(ParameterError, match="logit_bias"):
        SamplingParams(logit_bias=bias)


@pytest.mark.parametrize("token", [-1, VOCAB])
def test_a_bias_of_an_unknown_token_is_refused(token: int) -> None:
    with pytest.raises(ParameterError, match="outside 0 to 271"):
        LLM(MODEL, TOKENIZER).prepare([1], SamplingParams(logit_bias=((token, 1),)))


def test_python_takes_biases_as_a_mapping() -> None:
    assert sampling_params(5, {"logit_bias": {3: 1.5}}).logit_bias == ((3, 1.5),)


def test_deadlines_end_what_runs_and_what_waits_and_nothing_else() -> None:
    llm = scripted.engine("y" * 200, max_sequences=2)
    ids = TOKENIZER.encode("A", add_special=False)
    params = SamplingParams(temperature=0, max_tokens=30, stop=("yyyz",))
    running, other, queued, patient = [llm.add_request(ids, params) for _ in range(4)]
    for _ in range(6):
        llm.step()
    running.deadline = queued.deadline = time.perf_counter()
    other.deadline = patient.deadline = time.perf_counter() + 3600
    outputs = llm.step()
    ended = {output.sequence: output for output in outputs if output.sequence.finish_reason}
    assert {each.finish_reason for each in ended} == {"deadline"} and set(ended) == {running, queued}
    assert (ended[running].text, ended[running].token) == ("yyy", None)  # what might have begun a stop string
    assert not running.blocks and running.error is None
    assert [len(list(llm.run([each]))) > 0 and each.finish_reason for each in (other, patient)] == ["length"] * 2
    assert llm.scheduler.pool.free == llm.scheduler.pool.count
