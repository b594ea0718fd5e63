"""One request on its way through the engine."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice
from typing import Any

import numpy as np

from bitnet.backends.base import BLOCK_SIZE
from bitnet.engine.constraint import Constraint
from bitnet.engine.sampling import SamplingParams, TokenLogprob
from bitnet.errors import BitNetError

NEVER = sys.maxsize  # a prompt that is not scored


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt, what was generated after it, and how far the model has computed both.

    Its context, what the model sees, is prompt and output as one: all of it, until `slide` has dropped some.
    computed: positions of the context whose keys and values are in the cache. blocks: the cache blocks that hold them.
    score_from: the first position of the prompt whose logits are wanted, to score the tokens after it.
    hashes: of the context's first blocks, as far as they were needed. offered: blocks that others may share. salt: only
    sequences of the same salt share. cached: positions that were in the cache when it began, and miss: why not more.
    keep: tokens at the beginning that never slide out. slid: how many after them have.
    drafted, accepted: guesses at tokens, and those that were right. steps: runs of the model that gave tokens.
    finish_reason: "stop" (end of text, a stop string, or a constraint that is satisfied), "length" (max_tokens or the
    context), "deadline", "abort" or "error", and then `error` says which.
    stopped_by: the stop string that ended it, if one did.
    deadline: of time.perf_counter(), when it ends wherever it is.
    """

    id: int
    prompt: list[int]
    params: SamplingParams
    score_from: int = NEVER
    output: list[int] = field(default_factory=list)
    constraint: Constraint | None = None
    deadline: float | None = None
    keep: int = 0
    slid: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    offered: int = 0
    salt: bytes = b""
    cached: int = 0
    miss: str = ""
    status: Status = Status.WAITING
    finish_reason: str = ""
    stopped_by: str | None = None
    error: BitNetError | None = None
    unread: deque[Any] = field(default_factory=deque)  # outputs that LLM.run has not given to its caller yet
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    arrived: float = field(default_factory=time.perf_counter)
    began: float = 0.0  # left the queue for the first time
    first_token: float = 0.0
    finished: float = 0.0
    counts: Counter[int] = field(default_factory=Counter)
    prompt_counts: Counter[int] = field(init=False)
    random: np.random.Generator = field(init=False)
    numbers: deque[float] = field(default_factory=deque)  # of `random`, that no token has used yet

    def __post_init__(self) -> None:
        self.prompt_counts = Counter(self.prompt) if self.params.has_penalties else Counter()
        self.random = np.random.Generator(np.random.PCG64(self.params.seed))

    def __len__(self) -> int:
        """Positions of the context."""
        return len(self.prompt) + len(self.output) - self.slid

    @property
    def top(self) -> int:
        """How many of the likeliest logits decide its next token; 0: all."""
        return 0 if self.constraint is not None else self.params.top

    def tokens(self, start: int, end: int) -> list[int]:
        """The ids at positions start to end - 1 of the context."""
        if not self.slid:
            return self._text(start, end)
        kept = self._text(start, min(end, self.keep))
        return kept + self._text(max(start, self.keep) + self.slid, end + self.slid)

    def slide(self, size: int) -> None:
        """Make room in a context of `size`: the first `keep` tokens stay, and the latest that fill half of the rest.

        What stays is a text like any other: positions count anew, and all after `keep` must be computed again.
        """
        self.slid += len(self) - self.keep - (size - self.keep) // 2
        self.computed = min(self.computed, self.keep)
        del self.hashes[self.keep // BLOCK_SIZE :]
        self.offered = min(self.offered, len(self.hashes))

    @property
    def scored(self) -> bool:
        return self.score_from < len(self.prompt)

    def _text(self, start: int, end: int) -> list[int]:
        """Prompt and output as one, whether it slid out or not."""
        split = len(self.prompt)
        return self.prompt[start:end] + self.output[max(0, start - split) : max(0, end - split)]

    def blocks_for(self, length: int) -> int:
        """How many more blocks are needed to hold `length` positions."""
        return max(0, -(-length // BLOCK_SIZE) - len(self.blocks))

    def numbers_ahead(self, count: int) -> list[float]:
        """What its next tokens will be drawn with; a step may be given more of them than it uses."""
        while len(self.numbers) < count:
            self.numbers.append(self.random.random())
        return list(islice(self.numbers, count))

    def next_number(self) -> float:
        return self.numbers.popleft() if self.numbers else self.random.random()

    def append(self, token: int) -> None:
        now = time.perf_counter()
        self.first_token = self.first_token or now
        self.output.append(token)
        self.counts[token] += 1

    def take(self) -> list[Any]:
        """The unread outputs, which then count as read."""
        taken = list(self.unread)
        self.unread.clear()
        return taken

    def finish(self, reason: str) -> None:
        self.status, self.finish_reason, self.finished = Status.FINISHED, reason, time.perf_counter()
