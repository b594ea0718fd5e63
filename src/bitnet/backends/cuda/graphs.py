"""Steps of a model on one cache. Those that decode are captured: one launch replays them all.

A graph belongs to a number of sequences and a length of their tables, both rounded up to powers of two; rows that fill
it up write into the cache's spare block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.base import BLOCK_SIZE, Ints, Model, Step, TopLogits
from bitnet.backends.cuda.cache import KVCache
from bitnet.backends.cuda.device import Array, Pool
from bitnet.backends.cuda.screen import Scored
from bitnet.backends.cuda.steps import DeviceStep, place

if TYPE_CHECKING:
    from bitnet.backends.cuda.ops import CUDA

MOST_SEQUENCES = 256
LEAST_BLOCKS = 16
ROOM = 512  # ids of a row that come to the host; of more, which are equal, the whole row does
Logits = NDArray[np.float32] | list[TopLogits]


def power_of_two(value: int, least: int = 1) -> int:
    return max(least, 1 << max(0, value - 1).bit_length())


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
            return self._to_host(step.tops, logits, self._select(logits, step.tops))
        shape = power_of_two(sequences), power_of_two(step.block_tables.shape[1], LEAST_BLOCKS)
        if shape not in self._graphs:
            self._graphs[shape] = Graph(self, *shape)
        logits, found = self._graphs[shape].run(step)
        return self._to_host(step.tops, logits, found)

    def _to_host(self, tops: Ints, logits: Array | Scored, found: Array | None) -> Logits:
        """The rows that are wanted, the first ones: whole where one needs them all, or where too many might matter."""
        rows = None if found is None or not tops.all() else top_logits(found, len(tops), logits.shape[1])
        return whole(self.ops.array(logits), len(tops)) if rows is None else rows

    def _select(self, logits: Array | Scored, tops: Ints) -> Array | None:
        if not len(tops) or not tops.all():
            return None
        return self.ops.select(logits, self.ops.device.put(tops), ROOM)


class Graph:
    """One token each of `sequences` sequences, whose tables have `blocks` blocks."""

    def __init__(self, steps: Steps, sequences: int, blocks: int) -> None:
        self.steps, self.sequences, self.blocks = steps, sequences, blocks
        device = steps.ops.device
        self.width = max(4, sequences)  # Triton is promised addresses that are multiples of 16
        self.numbers = np.zeros(3 * self.width + sequences * blocks, np.int32)  # ids, positions, tops, tables
        self.input = device.put(self.numbers)
        ids, positions, self.tops = (self.input.part(i * self.width, (sequences,)) for i in range(3))
        rows = np.arange(sequences + 1, dtype=np.int32)
        tables = self.input.part(3 * self.width, (sequences, blocks))
        self.step = DeviceStep(ids, positions, None, tables, device.put(rows[:-1]), rows, blocks * BLOCK_SIZE)
        self._replay: Callable[[], None] | None = None
        self._results: tuple[Array | Scored, Array] | None = None
        self._held: Sequence[Any] = ()  # a larger cache brings longer tables of angles: this graph has the old ones

    def run(self, step: Step) -> tuple[Array | Scored, Array]:
        """Logits, and the largest of them."""
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
        self._results = logits, ops.select(logits, self.tops, ROOM)

    def _fill(self, step: Step) -> None:
        count, (ids, positions, tops) = len(step.ids), self.numbers[: 3 * self.width].reshape(3, -1)
        ids[:count], positions[:count] = step.ids, step.positions
        tops[:count] = np.maximum(step.tops, 1)
        ids[count:], positions[count:], tops[count:] = 0, 0, 1
        tables = self.numbers[3 * self.width :].reshape(self.sequences, self.blocks)
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


def top_logits(found: Array, count: int, vocab: int) -> list[TopLogits] | None:
    """What `select` found of the first `count` rows; None where there was no room for it."""
    table: NDArray[Any] = found.part(0, (count, found.shape[1])).numpy()
    if (table[:, 0] > ROOM).any():
        return None
    rows = []
    for row in table:
        ids, values = row[1 : 1 + row[0]], row[1 + ROOM : 1 + ROOM + row[0]].view(np.float32)
        order = ids.argsort()
        rows.append(TopLogits(ids[order], values[order], vocab))
    return rows


def whole(logits: Array, rows: int) -> NDArray[np.float32]:
    return logits.part(0, (rows, logits.shape[1])).numpy()
