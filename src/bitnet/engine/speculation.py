"""Speculation: tokens are guessed cheaply, and the step that would give one token verifies several guesses.

It changes nothing but the time. Every guess's position is sampled as without it, from the same logits (a row's bits do
not depend on the rows beside it) with the sequence's own next random number; guesses count as long as they are what
was sampled, and the first sample that differs takes the place of its guess. So the tokens, log-probabilities and ends
are the very same, greedily and for any seed. (That is more than speculative sampling promises, arXiv:2211.17192: the
same distribution.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from bitnet.engine.draft import Drafter
from bitnet.engine.kv_cache import BlockPool
from bitnet.engine.scheduler import Chunk
from bitnet.engine.sequence import Sequence

SHARED = 8  # tokens that share one reading of the weights; each beyond costs its full arithmetic
HOPE = 0.75  # of the first guess to be right
MEMORY = 8  # verified guesses that the share of right ones is taken over, roughly
PATIENCE = 512  # steps without guesses after which hope is back


class Speculator:
    """Adds a drafter's guesses to steps, as many as are likely to pay and never at a neighbour's cost.

    draft_tokens: guesses at a sequence's next tokens at most. chunk: tokens in a step at most.
    """

    def __init__(self, drafter: Drafter, draft_tokens: int, chunk: int) -> None:
        self.drafter, self.draft_tokens = drafter, draft_tokens
        self.most = min(chunk, max(SHARED, draft_tokens + 1))  # tokens in a step with guesses
        self._rates: dict[Sequence, float] = {}  # how likely the next guess is right

    def add_drafts(self, chunks: list[Chunk], pool: BlockPool, left: Callable[[Sequence], int]) -> list[Chunk]:
        """`chunks` with guesses in the blocks that are free. left: how many tokens a sequence may still get."""
        decodes = [chunk.sequence for chunk in chunks if chunk.complete and len(chunk) == 1]
        share = (self.most - sum(map(len, chunks))) // max(1, len(decodes))
        counts = {sequence: min(share, self._length(sequence), left(sequence) - 1) for sequence in decodes}
        drafts = self.drafter.propose({sequence: count for sequence, count in counts.items() if count > 0})
        return [replace(c, drafts=room_for(c, drafts[c.sequence], pool)) if c.sequence in drafts else c for c in chunks]

    def learn(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """What became of a sequence's guesses."""
        rate = self._rates.get(sequence, HOPE)
        for right in [1.0] * accepted + [0.0] * (accepted < drafted):
            rate += (right - rate) / MEMORY
        if not drafted:
            rate = max(rate, min(HOPE, rate + 1 / PATIENCE))
        self._rates[sequence] = rate

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended, or its context is no longer what it was and more."""
        self._rates.pop(sequence, None)
        self.drafter.forget(sequence)

    def _length(self, sequence: Sequence) -> int:
        """How many guesses pay: the n-th is right with a chance of rate ** n."""
        rate = min(self._rates.get(sequence, HOPE), 0.99)
        return min(self.draft_tokens, int(math.log(self.drafter.pays) / math.log(rate)))


def room_for(chunk: Chunk, drafts: list[int], pool: BlockPool) -> tuple[int, ...]:
    """As many of `drafts` as the free blocks can hold."""
    while drafts and not pool.grow(chunk.sequence, chunk.end + len(drafts)):
        drafts = drafts[:-1]
    return tuple(drafts)
