"""A model that says what it is told: the token at each position of a script, whatever it is asked."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tiny

from bitnet import backends
from bitnet.backends.base import Step
from bitnet.engine import LLM, EngineConfig
from bitnet.engine import Sequence as Request
from bitnet.models.decoder import Config


class Scripted:
    """scripts: first token of a prompt -> the token at every position. A negative token stands for NaN logits.

    It is a Decoder to the engine: a step's rows belong to the script of the sequence's first token, which it remembers
    by the sequence's first cache block.
    """

    def __init__(self, scripts: Mapping[int, Sequence[int]], context: int = 256) -> None:
        self.scripts, self.ops = scripts, backends.make("reference")
        self.config = Config(16, 16, 1, 1, 1, 16, vocab_size=272, max_position_embeddings=context)
        self.owners: dict[int, int] = {}
        self.tokens_per_step: list[int] = []

    def __call__(self, step: Step, cache: Any) -> Any:
        self.tokens_per_step.append(len(step.ids))
        logits = np.full((len(step.ids), self.config.vocab_size), -10, np.float32)
        for b, (start, end) in enumerate(zip(step.starts[:-1], step.starts[1:], strict=True)):
            first_block = int(step.block_tables[b][0])
            if step.positions[start] == 0:
                self.owners[first_block] = int(step.ids[start])
            script = self.scripts[self.owners[first_block]]
            for row in range(start, end):
                token = script[min(int(step.positions[row]) + 1, len(script) - 1)]
                logits[row, token] = 10 if token >= 0 else np.nan
        return logits[step.want]


class Guesses:
    """A drafter that is asked often and knows the scripts, but says something else with the chance `wrong`.

    scripts: first token of a prompt -> the token at every position, as above.
    """

    pays = 0.01

    def __init__(self, scripts: Mapping[int, Sequence[int]], wrong: float = 0.0) -> None:
        self.scripts, self.wrong, self.random = scripts, wrong, random.Random(0)

    def propose(self, wanted: Mapping[Request, int]) -> dict[Request, list[int]]:
        return {request: self.after(request, count) for request, count in wanted.items()}

    def after(self, request: Request, count: int) -> list[int]:
        known = [*self.scripts.get(request.prompt[0], ()), *[7] * (len(request) + count)]
        few = self.random.randint(0, count) if self.wrong else count
        right = known[len(request) : len(request) + few]
        return [self.random.randrange(272) if self.random.random() < self.wrong else token for token in right]

    def forget(self, request: Request) -> None:
        pass


def engine(text: str | Sequence[int], prompt: str = "A", **config: Any) -> LLM:
    """An engine that answers `prompt` with `text`; config: fields of EngineConfig."""
    tokenizer = tiny.tokenizer()
    ids = tokenizer.encode(prompt, add_special=False)
    answer = tokenizer.encode(text, add_special=False) if isinstance(text, str) else list(text)
    return LLM(Scripted({ids[0]: ids + answer}), tokenizer, EngineConfig(**config))  # type: ignore[arg-type]
