"""Runs the model over the chunks of a step."""

from __future__ import annotations

import numpy as np

from bitnet.backends.base import Cache, Step
from bitnet.engine.sampling import Floats
from bitnet.engine.scheduler import Chunk
from bitnet.models import Decoder

MOST_TOP = 256  # beyond this all logits are computed


class Runner:
    """A model with its cache. head: "full" computes all logits always; else as many as the sequences need."""

    def __init__(self, model: Decoder, blocks: int, kv_dtype: str, head: str = "auto") -> None:
        c = model.config
        self.model, self.head = model, head
        self.cache: Cache = model.ops.new_cache(
            c.num_hidden_layers, blocks, c.num_key_value_heads, c.head_dim, kv_dtype
        )

    def run(self, chunks: list[Chunk]) -> list[Floats]:
        """The logits (rows, vocab) of each chunk: of its last token, or of all where the prompt is scored.

        Those that cannot matter to any of the sequences may be -inf.
        """
        top = 0 if self.head == "full" else needed_logits(chunks)
        logits = self.model(make_step(chunks, top), self.cache)
        ends = np.cumsum([len(wanted_rows(c)) for c in chunks])
        return np.split(logits, ends[:-1])


def wanted_rows(chunk: Chunk) -> range:
    """The rows of a chunk, counted within it, whose logits are wanted; none while a prompt is unfinished."""
    count = chunk.end - chunk.start
    if chunk.sequence.score_prompt and chunk.start < len(chunk.sequence.prompt):
        return range(count)
    return range(count - 1, count) if chunk.end == len(chunk.sequence) else range(0)


def needed_logits(chunks: list[Chunk]) -> int:
    """How many of the likeliest logits every wanted row needs; 0: all."""
    tops = [
        0 if c.sequence.score_prompt and c.start < len(c.sequence.prompt) else c.sequence.params.top
        for c in chunks
        if wanted_rows(c)
    ]
    return max(tops) if tops and all(0 < top <= MOST_TOP for top in tops) else 0


def make_step(chunks: list[Chunk], top: int = 0) -> Step:
    counts = [c.end - c.start for c in chunks]
    starts = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    tables = np.full((len(chunks), max(len(c.sequence.blocks) for c in chunks)), -1, np.int32)
    for row, chunk in zip(tables, chunks, strict=True):
        row[: len(chunk.sequence.blocks)] = chunk.sequence.blocks
    return Step(
        ids=np.concatenate([np.asarray(c.sequence.tokens(c.start, c.end), np.int32) for c in chunks]),
        positions=np.concatenate([np.arange(c.start, c.end, dtype=np.int32) for c in chunks]),
        starts=starts,
        want=np.concatenate(
            [np.asarray(wanted_rows(c), np.int32) + start for c, start in zip(chunks, starts, strict=False)]
        ).astype(np.int32),
        block_tables=tables,
        top=top,
    )
