"""What the projections of a float model are given to read: rows of their inputs, kept while it reads a text."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.base import Ops, Step, Value, Weight
from bitnet.models import Decoder

Floats = NDArray[np.float32]
MOST_ROWS = 512  # of each projection's inputs
MOST_BYTES = 1 << 28  # of all of them


class Recorder:
    """The operations of `ops`, which also keep the rows `pick` of what enters each projection."""

    def __init__(self, ops: Ops, names: dict[int, str]) -> None:
        self.ops, self.names = ops, names
        self.pick: NDArray[np.int64] = np.empty(0, np.int64)
        self.rows: dict[str, list[Floats]] = {name: [] for name in names.values()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def linear(self, x: Value, *weights: Weight) -> tuple[Value, ...]:
        kept = np.asarray(x)[self.pick]  # one array for all the projections that read it
        for weight in weights:
            self.rows[self.names[id(weight)]].append(kept)
        return self.ops.linear(x, *weights)


def record(model: Decoder, ids: Sequence[int], ctx: int, most: int = MOST_BYTES) -> dict[str, Floats]:
    """Inputs (rows, k) of every projection, by its name, while `model` reads the text `ids` in windows of `ctx`.

    The rows are of tokens spread evenly over the text, as many as `most` bytes hold.
    """
    names = {id(weight): name for name, weight in model.weights.items() if name.endswith("_proj")}
    recorder = Recorder(model.ops, names)
    recording = model.on(cast(Ops, recorder))
    columns = sum(prod(weight.shape[1:]) for weight in unique_inputs(model))
    rows = max(1, min(MOST_ROWS, len(ids), most // (4 * columns)))
    tokens = (np.arange(rows) * 2 + 1) * len(ids) // (2 * rows)
    for start in range(0, len(ids), ctx):
        window = list(ids[start : start + ctx])
        recorder.pick = tokens[(tokens >= start) & (tokens < start + len(window))] - start
        cache = model.ops.new_cache(*cache_sizes(model, len(window)))
        recording.hidden(Step.whole(window, want=[len(window) - 1]), cache)
    return {name: np.concatenate(found) for name, found in recorder.rows.items()}


def unique_inputs(model: Decoder) -> list[Weight]:
    """A weight for each different input; q, k and v read the same, and gate and up."""
    readers = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    return [w[name] for w in model.layers for name in readers]


def cache_sizes(model: Decoder, tokens: int) -> tuple[int, int, int, int, str]:
    c = model.config
    return c.num_hidden_layers, -(-tokens // 16), c.num_key_value_heads, c.head_dim, "f16"
