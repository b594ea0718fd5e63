"""Likelihoods and accuracies against float64 over the logits of each whole text by itself."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from bitnet.engine import LLM, EngineConfig
from bitnet.errors import ContextError, ParameterError
from bitnet.evaluate.choice import accuracy
from bitnet.evaluate.likelihood import Continuation, likelihoods
from bitnet.evaluate.questions import Question
from bitnet.models import Decoder

CONTEXTS = ("Question: why is the sky so blue today?\nAnswer:", "a ", "", "the same beginning of some length, ")
CHOICES = (" because", " x", " it is what it is, and no more", " 42")


@pytest.fixture(scope="module")
def model() -> Decoder:
    return tiny.load(tiny.Synthetic(tiny.LLAMA))


def engine(model: Decoder, **options: object) -> LLM:
    return LLM(model, tiny.tokenizer(), EngineConfig(ctx_size=128, **options))  # type: ignore[arg-type]


def texts() -> list[Continuation]:
    return [Continuation.of(tiny.tokenizer(), context, choice) for context in CONTEXTS for choice in CHOICES]


def expected(model: Decoder, text: Continuation) -> tuple[float, bool]:
    logits = tiny.logits(model, list(text.ids), kv="f16").astype(np.float64)
    rows = range(text.start - 1, len(text.ids) - 1)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    greedy = all(logits[row].argmax() == text.ids[row + 1] for row in rows)
    return sum(logprobs[row, text.ids[row + 1]] for row in rows), greedy


@pytest.mark.parametrize("options", [{}, {"max_sequences": 8}, {"max_sequences": 3, "prefix_cache": False}])
def test_likelihoods(model: Decoder, options: dict[str, object]) -> None:
    llm = engine(model, **options)
    done: list[tuple[int, int]] = []
    found = likelihoods(llm, texts(), lambda *progress: done.append(progress))
    for text, each in zip(texts(), found, strict=True):
        logprob, greedy = expected(model, text)
        assert each.logprob == pytest.approx(logprob, rel=1e-5)
        assert (each.greedy, each.tokens) == (greedy, len(text.ids) - text.start)
    assert done == [(i + 1, len(found)) for i in range(len(found))]
    assert (llm.scheduler.pool.hits > 0) == options.get("prefix_cache", True)


def test_what_the_model_would_write_is_greedy(model: Decoder) -> None:
    ids = [1, 40, 50, 60]
    for _ in range(3):
        ids.append(int(tiny.logits(model, ids, kv="f16")[-1].argmax()))
    (right,) = likelihoods(engine(model), [Continuation(tuple(ids), 4)])
    (wrong,) = likelihoods(engine(model), [Continuation((*ids[:-1], (ids[-1] + 1) % 200), 4)])
    assert (right.greedy, wrong.greedy) == (True, False)


def test_blanks_between_context_and_choice_belong_to_the_choice() -> None:
    tokenizer = tiny.tokenizer()
    apart = Continuation.of(tokenizer, "a b ", "c")
    together = Continuation.of(tokenizer, "a b", " c")
    assert apart == together
    assert together.start == len(tokenizer.encode("a b"))


def test_accuracy(model: Decoder) -> None:
    llm = engine(model, max_sequences=4)
    questions, right, normed = [], 0, 0
    for i, context in enumerate(CONTEXTS * 2):
        answer = i % len(CHOICES)
        questions.append(Question(context, CHOICES, answer))
        scores = [expected(model, Continuation.of(llm.tokenizer, context, choice))[0] for choice in CHOICES]
        right += int(np.argmax(scores) == answer)
        normed += int(np.argmax([s / len(c.strip()) for s, c in zip(scores, CHOICES, strict=True)]) == answer)
    found = accuracy(llm, llm.tokenizer, questions)
    assert (found.acc * 8, found.acc_norm * 8, found.questions, found.chance) == (right, normed, 8, 0.25)
    assert found.error(0.25) == pytest.approx((0.25 * 0.75 / 7) ** 0.5)


def test_a_text_that_does_not_fit(model: Decoder) -> None:
    with pytest.raises(ContextError, match="200 tokens"):
        likelihoods(engine(model), [Continuation(tuple([1] * 200), 5)])


def test_nothing_to_score() -> None:
    with pytest.raises(ParameterError, match="no token to score"):
        Continuation.of(tiny.tokenizer(), "a", "")
