"""What the next step works on: one token of every running sequence, and prompts in chunks beside them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import islice

from bitnet.backends.base import BLOCK_SIZE
from bitnet.engine.kv_cache import BlockPool
from bitnet.engine.prefix_index import block_hash, shareable
from bitnet.engine.sequence import Sequence, Status


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens start to end - 1 of a sequence, to be computed in this step, and guesses at those that follow."""

    sequence: Sequence
    start: int
    end: int
    drafts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.end - self.start + len(self.drafts)

    @property
    def tokens(self) -> list[int]:
        return [*self.sequence.tokens(self.start, self.end), *self.drafts]

    @property
    def prefill(self) -> bool:
        """Whether it reads what was there before: one token more is what every step computes."""
        return self.end - self.start > 1 or not self.complete

    @property
    def complete(self) -> bool:
        """Whether it ends the sequence as it is known, so that the next token can be chosen."""
        return self.end == len(self.sequence)


class Scheduler:
    """First come, first served.

    max_sequences: how many run at once. chunk: tokens in a step at most, so that a long prompt cannot hold up others.
    When the cache is full, the youngest sequence gives its blocks back and is computed again later: because results do
    not depend on how a sequence was cut into steps, it continues with the same tokens.
    """

    def __init__(self, pool: BlockPool, max_sequences: int, chunk: int) -> None:
        self.pool, self.max_sequences, self.chunk = pool, max_sequences, max(chunk, max_sequences)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self, prompt_tokens: int | None = None) -> list[Chunk]:
        """The chunks of the next step; empty when there is nothing to do.

        prompt_tokens: of prompts at most, beside the one token of each sequence that is past its prompt.
        """
        self._admit()
        chunks: list[Chunk] = []
        budget, prompts = self.chunk, self.chunk if prompt_tokens is None else prompt_tokens
        for sequence in sorted(self.running, key=lambda s: len(s) - s.computed > 1):  # decodes before prompts
            left = len(sequence) - sequence.computed
            count = min(left, budget, prompts if left > 1 else 1)
            if sequence.status is Status.RUNNING and count and self._make_room(sequence, sequence.computed + count):
                chunks.append(Chunk(sequence, sequence.computed, sequence.computed + count))
                budget -= count
                prompts -= count if left > 1 else 0
        return [c for c in chunks if c.sequence.status is Status.RUNNING]

    def finish(self, sequence: Sequence, reason: str) -> None:
        """Take a sequence out, whatever its state, and free its blocks."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        self.pool.release(sequence)
        sequence.finish(reason)

    def _admit(self) -> None:
        free, places = self.pool.free, self.max_sequences - len(self.running)
        for sequence in list(islice(self.waiting, places)):
            found = self.pool.find(sequence)
            if self._is_read(sequence, len(found)):
                continue  # and its place is kept
            needed = self.pool.missing(sequence, len(sequence) + 1, found)
            if self.running and needed > free:
                return
            free -= needed
            self.waiting.remove(sequence)
            self._begin(sequence, found)

    def _is_read(self, sequence: Sequence, block: int) -> bool:
        """Whether another is about to compute the sequence's next block: then it need not do so again."""
        return self.pool.share and any(
            other.offered <= block < min(shareable(sequence), len(other) // BLOCK_SIZE)
            and block_hash(other, block) == block_hash(sequence, block)
            for other in self.running
        )

    def _begin(self, sequence: Sequence, found: list[int]) -> None:
        self.pool.adopt(sequence, found)
        sequence.status = Status.RUNNING
        self.running.append(sequence)
        if not sequence.began:
            sequence.began = time.perf_counter()
            self.pool.count_hits(sequence)

    def _make_room(self, sequence: Sequence, length: int) -> bool:
        while not self.pool.grow(sequence, length):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.pool.release(sequence)
        sequence.computed, sequence.status = 0, Status.WAITING
        self.waiting.appendleft(sequence)
