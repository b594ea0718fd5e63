"""Texts that have as many tokens as asked for, by the server's own count and without its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet.bench.serving.client import Record, Target
from bitnet.errors import BitNetError

COMMON = (
    "the of and to in is was for on that by this with from at his it an were are which be has not also had or their "
    "one all new who its first two after other time more can over when there into some only year most between may "
    "many where three world state then water such out people made life under city through part work well number "
    "small house great school place long high day hand old side power might light end name line form large still"
)
WORDS = COMMON.split()
PROBES = 40, 160  # words


@dataclass(frozen=True, slots=True)
class Counted:
    """A prompt of n words has `per_word` * n + `beside` tokens."""

    per_word: float = 4 / 3
    beside: float = 0.0

    def words(self, tokens: int) -> int:
        return max(1, round((tokens - self.beside) / self.per_word))


async def counted(target: Target, rng: np.random.Generator) -> tuple[Counted, bool]:
    """What two requests, which also warm the server up, tell of its tokens; False where it does not count them.

    Raises BitNetError where the server does not answer them.
    """
    records = []
    for count in PROBES:
        record = await target.ask(text(rng, count), 1, Record())
        if record.error and record.error != "The answer has no tokens.":
            raise BitNetError(f"{target.http.base_url} does not do what is asked: {record.error}")
        records.append(record)
    few, many = (record.prompt_tokens for record in records)
    if not few < many:
        return Counted(), False
    per_word = (many - few) / (PROBES[1] - PROBES[0])
    return Counted(per_word, few - per_word * PROBES[0]), True


def text(rng: np.random.Generator, words: int) -> str:
    return " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=words))


def prompts(
    rng: np.random.Generator, counted: Counted, lengths: NDArray[np.int64], prefix: int, prefixes: int
) -> list[str]:
    """Random ones of these lengths; each begins with one of `prefixes` texts of `prefix` tokens, which come on top."""
    rest = [text(rng, counted.words(int(length))) for length in lengths]
    if not prefix:
        return rest
    beginnings = [text(rng, max(1, round(prefix / counted.per_word))) for _ in range(prefixes)]
    return [f"{beginnings[i]} {words}" for i, words in zip(rng.integers(prefixes, size=len(rest)), rest, strict=True)]
