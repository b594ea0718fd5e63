"""A step's numbers on the GPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bitnet.backends.base import Ints, Step
from bitnet.backends.cuda.device import Array, Device


@dataclass(slots=True, eq=False)
class DeviceStep:
    """Step, for the model to run on: its arrays lie on the device, whose contents may change between runs.

    rows: the sequence of each token. longest: positions that any token sees at most. starts: as in Step, on the host.
    """

    ids: Array
    positions: Array
    want: Array | None  # None: all rows, in order
    block_tables: Array
    rows: Array
    starts: Ints
    longest: int
    top: int | Ints = 0
    _queries: dict[tuple[int, int], list[Piece]] = field(default_factory=dict)

    def queries(self, most: int, rows: int) -> list[Piece]:
        """Each sequence's rows, cut into runs of `most`; these in pieces of about `rows` rows, of whole runs."""
        if (most, rows) not in self._queries:
            runs, each = cut(self.starts, most), max(1, rows // most)
            put = self.ids.pool.device.put
            self._queries[most, rows] = [
                Piece(put(part), int(part[0, 1]), int(part[:, 2].sum()))
                for part in (runs[i : i + each] for i in range(0, len(runs), each))
            ]
        return self._queries[most, rows]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """runs: (programs, 3), of each its sequence, first row and count. first, rows: that these are together."""

    runs: Array
    first: int
    rows: int


def cut(starts: Ints, most: int) -> Ints:
    runs: list[tuple[int, int, int]] = []
    for sequence, (start, end) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        runs += [(sequence, first, min(most, end - first)) for first in range(start, end, most)]
    return np.array(runs, np.int32).reshape(-1, 3)


def place(device: Device, step: Step) -> DeviceStep:
    def put(values: Ints) -> Array:
        return device.put(np.ascontiguousarray(values, np.int32))

    return DeviceStep(
        put(step.ids),
        put(step.positions),
        put(step.want),
        put(step.block_tables),
        put(step.sequences),
        np.asarray(step.starts, np.int32),
        int(step.positions.max(initial=0)) + 1,
        step.top,
    )
