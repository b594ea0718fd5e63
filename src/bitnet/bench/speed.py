"""How long the engine takes to read a prompt and to generate, at a depth of context, on fixed token ids.

The steps are the engine's own: a Scheduler cuts them, a Runner runs them. Only sampling and text are left out. As many
logits are computed as the default SamplingParams need.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bitnet.backends.base import kv_vector_bytes
from bitnet.engine import SamplingParams, Sequence
from bitnet.engine.kv_cache import BlockPool
from bitnet.engine.runner import Runner, make_step
from bitnet.engine.sampling import Floats
from bitnet.engine.scheduler import Chunk, Scheduler
from bitnet.models import Decoder
from bitnet.models.decoder import Config, projection_shapes

WARM_UP = 8  # tokens generated before the clock runs


@dataclass(frozen=True, slots=True)
class Test:
    """Read `n_prompt` tokens, then generate `n_gen`, after `n_depth` tokens that are not timed."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    __test__ = False  # not one of pytest's

    @property
    def name(self) -> str:
        parts = [f"pp{self.n_prompt}"] * bool(self.n_prompt) + [f"tg{self.n_gen}"] * bool(self.n_gen)
        return "+".join(parts) + (f" @ d{self.n_depth}" if self.n_depth else "")

    @property
    def tokens(self) -> int:
        return self.n_prompt + self.n_gen

    @property
    def positions(self) -> int:
        return self.n_depth + self.tokens

    @property
    def mean_context(self) -> float:
        """Positions that a generated token attends to, on average."""
        return self.n_depth + self.n_prompt + (self.n_gen + 1) / 2

    def warm_up(self, chunk: int) -> Test:
        """A short test that takes the same ways."""
        return Test(min(self.n_prompt, chunk), min(self.n_gen, WARM_UP))


@dataclass(frozen=True, slots=True)
class Sample:
    """One repetition, in nanoseconds from when the depth has been read.

    ns: to the end. first_ns: until the logits of the first new token. token_ns: of every generated token.
    logits_hash: of the last token's logits; empty where the engine does not tell.
    """

    ns: int
    first_ns: int
    token_ns: tuple[int, ...]
    logits_hash: str = ""


class Run:
    """One sequence on a cache whose first `known` positions hold the keys and values of `token_ids` already."""

    def __init__(self, runner: Runner, blocks: int, chunk: int, known: int = 0) -> None:
        self.runner, self.known = runner, known
        self.scheduler = Scheduler(BlockPool(blocks), 1, chunk)
        self.sequence = Sequence(0, [], SamplingParams())
        self.scheduler.add(self.sequence)

    def timed(self, test: Test) -> Sample:
        ids = token_ids(test.positions, self.runner.model.config.vocab_size)
        prompt = test.n_depth + test.n_prompt
        self.sequence.computed = min(self.known, test.n_depth)
        logits = self.read(ids[: test.n_depth])
        marks = [time.perf_counter_ns()]
        if test.n_prompt:
            logits = self.read(ids[test.n_depth : prompt])
            marks.append(time.perf_counter_ns())
        for token in ids[prompt:]:
            self.sequence.append(token)
            logits = self.step()
            marks.append(time.perf_counter_ns())
        last = self.all_logits() if screen_bytes(self.runner.model) else logits[-1]
        steps = [end - start for start, end in pairwise(marks)]
        return Sample(marks[-1] - marks[0], steps[0], tuple(steps[len(steps) - test.n_gen :]), logits_hash(last))

    def read(self, ids: list[int]) -> Any:
        """The logits after `ids`, which go through in chunks; None where there are none."""
        logits = None
        self.sequence.prompt += ids
        while self.sequence.computed < len(self.sequence):
            logits = self.step()
        return logits

    def all_logits(self) -> Floats:
        """Of the last token, which goes through once more: what a screened head computes is a part of these."""
        end = self.sequence.computed
        logits: Floats = self.runner.compute(make_step([Chunk(self.sequence, end - 1, end)]))
        return logits[0]

    def step(self) -> Any:
        chunks = self.scheduler.schedule()
        logits = self.runner.run(chunks)
        self.sequence.computed = chunks[0].end
        return logits[0]


def token_ids(count: int, vocab_size: int) -> list[int]:
    """The same ids everywhere, spread over the vocabulary (multiples of the golden ratio, modulo 1)."""
    return [int(vocab_size * (i * 0.6180339887498949 % 1)) for i in range(1, count + 1)]


def logits_hash(logits: Floats) -> str:
    """Eight hex digits: two machines that print the same computed the same."""
    return hashlib.sha256(np.ascontiguousarray(logits, "<f4").tobytes()).hexdigest()[:8]


def weight_bytes(model: Decoder) -> int:
    """Bytes of weights that generating one token reads: all but the embedding, of which it reads a row.

    Of a screened head these are the screen's; the few rows that are read precisely are not counted.
    """
    screen = screen_bytes(model)
    unread = ("embed_tokens", "lm_head") if screen else ("embed_tokens",)
    read = {id(w): w for name, w in model.weights.items() if name not in unread}
    return screen + sum(stored_bytes(w) for w in read.values())


def screen_bytes(model: Decoder) -> int:
    """Bytes of the screen of the output head; 0 where there is none."""
    return getattr(model.weights["lm_head"], "screen_nbytes", 0)


def stored_bytes(weight: Any) -> int:
    parts = [weight] if hasattr(weight, "nbytes") else [getattr(weight, n, None) for n in ("codes", "data", "scales")]
    return sum(int(part.nbytes) for part in parts if part is not None)


def kv_bytes(model: Decoder, test: Test, kv: str) -> float:
    """Bytes of cached keys and values that generating one token of `test` reads, on average."""
    return test.mean_context * position_bytes(model.config, kv)


def position_bytes(config: Config, kv: str) -> int:
    """Bytes of the keys and values of one position."""
    return config.num_hidden_layers * 2 * config.num_key_value_heads * kv_vector_bytes(kv, config.head_dim)


def multiply_adds(config: Config) -> int:
    """Of one prompt token with the weights of the layers; the head, which only the last one needs, is left out."""
    return config.num_hidden_layers * sum(n * k for n, k in projection_shapes(config).values())
