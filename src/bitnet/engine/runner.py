"""Runs the model over the chunks of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.base import Cache, Ints, Row, Step
from bitnet.engine.scheduler import Chunk
from bitnet.models import Decoder

MOST_TOP = 256  # beyond this all logits are computed


class Runner:
    """A model on its cache. head: "full" computes all logits always; else as many as the sequences need."""

    def __init__(self, model: Decoder, blocks: int, kv_dtype: str, head: str = "auto") -> None:
        c = model.config
        self.model, self.head = model, head
        self.cache: Cache = model.ops.new_cache(
            c.num_hidden_layers, blocks, c.num_key_value_heads, c.head_dim, kv_dtype
        )
        self.compute = model.ops.compile(model, self.cache)

    def run(self, chunks: list[Chunk], draw: bool = False) -> list[Sequence[Row]]:
        """The logits (rows, vocab) of each chunk: of its last token and its drafts, or of all where the prompt
        is scored.

        Those that cannot matter to any of the sequences may be -inf. draw: in place of a row that is not scored there
        may be the token that it is drawn to.
        """
        top = 0 if self.head == "full" else needed_logits(chunks)
        draws = how_to_draw(chunks) if draw and self.model.ops.draws and np.any(top) else None
        logits = self.compute(make_step(chunks, top, draws))
        parts, end = [], 0
        for chunk in chunks:
            start, end = end, end + len(wanted_rows(chunk))
            parts.append(logits[start:end])
        return parts


def is_scored(chunk: Chunk) -> bool:
    return chunk.sequence.scored and chunk.start < len(chunk.sequence.prompt)


def wanted_rows(chunk: Chunk) -> range:
    """The rows of a chunk, counted within it, whose logits are wanted; none while a prompt is unfinished."""
    if is_scored(chunk):
        return range(max(0, chunk.sequence.score_from - chunk.start), len(chunk))
    return range(chunk.end - chunk.start - 1, len(chunk)) if chunk.complete else range(0)


def needed_logits(chunks: list[Chunk]) -> Ints:
    """How many of the likeliest logits each wanted row needs; 0: all."""
    tops: list[int] = []
    for chunk in chunks:
        top = 0 if is_scored(chunk) else chunk.sequence.top
        tops += [top if top <= MOST_TOP else 0] * len(wanted_rows(chunk))
    return np.array(tops, np.int32)


def how_to_draw(chunks: list[Chunk]) -> NDArray[np.float64]:
    """Step.draws of these chunks."""
    rows: list[tuple[float, ...]] = []
    for chunk in chunks:
        params, count = chunk.sequence.params, len(wanted_rows(chunk))
        ahead = [0.0] * count if is_scored(chunk) else chunk.sequence.numbers_ahead(count)
        rows += [(params.temperature, params.top_p, params.min_p, number) for number in ahead]
    return np.array(rows, np.float64)


def make_step(chunks: list[Chunk], top: int | Ints = 0, draws: NDArray[np.float64] | None = None) -> Step:
    """Lists first and arrays once: for the few numbers of a decode that is several times faster than NumPy's calls."""
    ids: list[int] = []
    positions: list[int] = []
    starts, want = [0], []
    for chunk in chunks:
        ids += chunk.tokens
        positions += range(chunk.start, chunk.start + len(chunk))
        want += [starts[-1] + row for row in wanted_rows(chunk)]
        starts.append(len(ids))
    blocks = [chunk.sequence.blocks for chunk in chunks]
    most = max(map(len, blocks))
    return Step(
        ids=np.array(ids, np.int32),
        positions=np.array(positions, np.int32),
        starts=np.array(starts, np.int32),
        want=np.array(want, np.int32),
        block_tables=np.array([row + [-1] * (most - len(row)) for row in blocks], np.int32),
        top=top,
        draws=draws,
    )
