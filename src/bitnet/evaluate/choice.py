"""How often a model finds the right one of several texts the likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitnet.engine import LLM
from bitnet.evaluate.likelihood import Continuation, Likelihood, likelihoods
from bitnet.evaluate.questions import Question
from bitnet.models.load import Progress
from bitnet.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of right answers, by the names of lm-evaluation-harness.

    acc: the likeliest choice. acc_norm: the likeliest by character, which does not favour short ones. chance: of
    a blind guess. questions: their number.
    """

    acc: float
    acc_norm: float
    chance: float
    questions: int

    def error(self, share: float) -> float:
        """The standard error of a share (of the sample, as lm-evaluation-harness has it)."""
        return math.sqrt(share * (1 - share) / max(self.questions - 1, 1))


def accuracy(
    llm: LLM,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    progress: Progress = lambda done, total: None,
) -> Accuracy:
    """Raises ContextError where a question is longer than the context."""
    texts = [Continuation.of(tokenizer, each.context, choice) for each in questions for choice in each.choices]
    found = iter(likelihoods(llm, texts, progress))
    right = normed = 0
    for question in questions:
        scores = [next(found) for _ in question.choices]
        right += best([each.logprob for each in scores]) == question.answer
        normed += best(per_character(question, scores)) == question.answer
    count = len(questions)
    chance = sum(1 / len(each.choices) for each in questions) / count
    return Accuracy(right / count, normed / count, chance, count)


def best(scores: Sequence[float]) -> int:
    """The index of the largest; the first of equal ones."""
    return max(range(len(scores)), key=lambda i: scores[i])


def per_character(question: Question, scores: Sequence[Likelihood]) -> list[float]:
    return [each.logprob / len(choice.strip()) for choice, each in zip(question.choices, scores, strict=True)]
