"""Steps of a model on one cache. Those that decode are captured: one launch replays them all.

A graph belongs to a number of sequences and a length of their tables, both rounded up to powers of two; rows that fill
it up write into the cache's spare block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.base import BLOCK_SIZE, Model, Row, Step, TopLogits
from bitnet.backends.cuda.cache import KVCache
from bitnet.backends.cuda.device import Array, Pool
from bitnet.backends.cuda.screen import Scored
from bitnet.backends.cuda.steps import DeviceStep, place
from bitnet.backends.cuda.tiles import power_of_two

if TYPE_CHECKING:
    from bitnet.backends.cuda.ops import CUDA

MOST_SEQUENCES = 256
LEAST_BLOCKS = 16
ROOM = 512  # ids of a row that may come to the host; of more, which are equal, the whole row does
DRAW = 4  # numbers that a token is drawn with
Logits = NDArray[np.float32] | list[Row]
Found = tuple[Array, Array]  # the likeliest of each row, and the token, as `select` gives them


class Steps:
    """`model` on `cache`, to be called for every step: the logits that are needed, on the host."""

    def __init__(self, ops: CUDA, model: Model, cache: KVCache) -> None:
        self.ops, self.model, self.cache = ops, model, cache
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._pool = Pool(ops.device)  # of all graphs: no two run at once

    def __call__(self, step: Step) -> Logits:
        check(step, self.cache)
        sequences = len(step.starts) - 1
        decodes = len(step.ids) == sequences == len(step.want) <= MOST_SEQUENCES
        if not decodes:
            at = place(self.ops.device, step)
            logits = self.model(at, self.cache)  # type: ignore[arg-type]
            return self._to_host(step, logits, self._select(logits, step))
        shape = power_of_two(sequences), max(LEAST_BLOCKS, power_of_two(step.block_tables.shape[1]))
        if shape not in self._graphs:
            self._graphs[shape] = Graph(self, *shape)
        return self._to_host(step, *self._graphs[shape].run(step))

    def _to_host(self, step: Step, logits: Array | Scored, found: Found | None) -> Logits:
        """Of each row that is wanted, the first ones, its token; else the likeliest logits; whole where it needs them
        all, or where too many might matter."""
        rows = likeliest(found, step, logits.shape[1]) if found else [None] * len(step.want)
        missing = [i for i, row in enumerate(rows) if row is None]
        if len(missing) == len(rows):
            return whole(self.ops.array(logits), 0, len(rows))
        if missing:
            values = self.ops.array(logits)
            for i in missing:
                rows[i] = whole(values, i, 1)[0]
        return rows  # type: ignore[return-value]

    def _select(self, logits: Array | Scored, step: Step) -> Found | None:
        if not step.tops.any():
            return None
        put = self.ops.device.put
        tops, draws = put(np.maximum(step.tops, 1)), None if step.draws is None else put(step.draws)
        return self.ops.select(logits, tops, ROOM, draws)


class Graph:
    """One token each of `sequences` sequences, whose tables have `blocks` blocks."""

    def __init__(self, steps: Steps, sequences: int, blocks: int) -> None:
        self.steps, self.sequences, self.blocks = steps, sequences, blocks
        device = steps.ops.device
        self.width = max(4, sequences)  # Triton is promised addresses that are multiples of 16
        # Ids, positions, tops; what tokens are drawn with, in float64; tables.
        self.numbers = np.zeros((3 + 2 * DRAW) * self.width + sequences * blocks, np.int32)
        self.input = device.put(self.numbers)
        ids, positions, self.tops = (self.input.part(i * self.width, (sequences,)) for i in range(3))
        self.draws = self.input.part(3 * self.width, (sequences, 2 * DRAW))
        rows = np.arange(sequences + 1, dtype=np.int32)
        tables = self.input.part((3 + 2 * DRAW) * self.width, (sequences, blocks))
        self.step = DeviceStep(ids, positions, None, tables, device.put(rows[:-1]), rows, blocks * BLOCK_SIZE)
        self._replay: Callable[[], None] | None = None
        self._results: tuple[Array | Scored, Found] | None = None
        self._held: Sequence[Any] = ()  # a larger cache brings longer tables of angles: this graph has the old ones

    def run(self, step: Step) -> tuple[Array | Scored, Found]:
        """Logits, and what was found in them."""
        self._fill(step)
        if self._replay is None or self._results is None:
            with self.steps.ops.device.passing_in(self.steps._pool):
                self._compute()  # compiles, and makes what is not to be captured
                self._results = None
                self._replay = self.steps.ops.device.capture(self._compute)
            self._held = self.steps.ops.held()
            assert self._results is not None
        self._replay()
        return self._results

    def _compute(self) -> None:
        ops = self.steps.ops
        logits = self.steps.model(self.step, self.steps.cache)  # type: ignore[arg-type]
        self._results = logits, ops.select(logits, self.tops, ROOM, self.draws)

    def _fill(self, step: Step) -> None:
        count, ends = len(step.ids), np.array([3, 3 + 2 * DRAW]) * self.width
        firsts, draws, tables = np.split(self.numbers, ends)
        ids, positions, tops = firsts.reshape(3, -1)
        ids[:count], positions[:count] = step.ids, step.positions
        tops[:count] = np.maximum(step.tops, 1)
        ids[count:], positions[count:], tops[count:] = 0, 0, 1
        if step.draws is not None:
            draws.view(np.float64).reshape(-1, DRAW)[:count] = step.draws
        tables = tables.reshape(self.sequences, self.blocks)
        tables[:] = self.steps.cache.spare
        tables[:count, : step.block_tables.shape[1]] = step.block_tables
        self.input.write(self.numbers)


def check(step: Step, cache: KVCache) -> None:
    """A kernel would read and write anywhere."""
    lasts = step.positions[step.starts[1:] - 1]
    rows = np.arange(len(lasts))
    whole = len(step.block_tables) == len(lasts) and (lasts < step.block_tables.shape[1] * BLOCK_SIZE).all()
    if not whole or step.block_tables.max(initial=-1) >= cache.blocks or step.positions.min(initial=0) < 0:
        raise ValueError("The step has positions that its tables have no block for.")
    if len(rows) and (step.block_tables[rows, lasts // BLOCK_SIZE] < 0).any():
        raise ValueError("The step has positions that its tables have no block for.")


def likeliest(found: Found, step: Step, vocab: int) -> list[Row | None]:
    """Of each wanted row the token where it was drawn, else the likeliest logits; None where it is needed whole."""
    tops, (table, tokens) = step.tops, found
    drawn = np.full(len(tops), -1) if step.draws is None else tokens.part(0, (len(tops),)).numpy()
    rows: list[Row | None] = [token if top and token >= 0 else None for top, token in zip(tops, drawn.tolist())]
    undecided = np.flatnonzero((drawn < 0) & (tops > 0)).tolist()
    if undecided:
        known = top_logits(table, len(tops), vocab)
        for i in undecided:
            rows[i] = known[i]
    return rows


def top_logits(found: Array, count: int, vocab: int) -> list[TopLogits | None]:
    """What `select` found of the first `count` rows; None where there was no room for it."""
    rows: list[TopLogits | None] = []
    for row in found.part(0, (count, found.shape[1])).numpy():
        ids, values = row[1 : 1 + row[0]], row[1 + ROOM : 1 + ROOM + row[0]].view(np.float32)
        order = ids.argsort()
        rows.append(TopLogits(ids[order], values[order], vocab) if row[0] <= ROOM else None)
    return rows


def whole(logits: Array, first: int, rows: int) -> NDArray[np.float32]:
    width = logits.shape[1]
    return logits.part(first * width, (rows, width)).numpy()
