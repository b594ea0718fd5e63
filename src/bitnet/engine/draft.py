"""Where guesses at the next tokens come from: the text itself, which often repeats what it has said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from bitnet.engine.sequence import Sequence

LONGEST, SHORTEST = 6, 2  # tokens of the text's end that are looked up


class Drafter(Protocol):
    """pays: how likely a guess must be right to be worth its verification."""

    pays: float

    def propose(self, wanted: Mapping[Sequence, int]) -> Mapping[Sequence, list[int]]:
        """Guesses at what follows each sequence's context: as many as wanted at most, perhaps none."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended, or its context is no longer what it was and more."""
        ...


class PromptLookup:
    """What followed when the last few tokens occurred before: the longest match, and of those the latest.

    (Prompt lookup decoding, https://github.com/apoorvumang/prompt-lookup-decoding.)
    """

    pays = 1 / 3

    def __init__(self) -> None:
        self._indexes: dict[Sequence, NgramIndex] = {}

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        return {sequence: self._index(sequence).follow(count) for sequence, count in wanted.items()}

    def forget(self, sequence: Sequence) -> None:
        self._indexes.pop(sequence, None)

    def _index(self, sequence: Sequence) -> NgramIndex:
        index = self._indexes.setdefault(sequence, NgramIndex())
        index.extend(sequence.tokens(len(index.tokens), len(sequence)))
        return index


class NgramIndex:
    """Where each n-gram of a growing text was last followed by something: a few steps for each token."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: list[int]) -> None:
        for token in tokens:
            end = len(self.tokens)  # what has ended here is now followed by `token`
            for n in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(self.tokens[end - n :])] = end
            self.tokens.append(token)

    def follow(self, count: int) -> list[int]:
        """What followed the longest known n-gram that the text ends with, over the end of the text if need be."""
        for n in range(LONGEST, SHORTEST - 1, -1):
            end = self._ends.get(tuple(self.tokens[-n:]))
            if end is not None:
                period = len(self.tokens) - end
                return [self.tokens[end + i % period] for i in range(count)]
        return []
