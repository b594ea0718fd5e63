"""Capture and replay: the model runs once on symbols, and from then on a step is one native call without the GIL."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

import bitnet._core as _core
from bitnet.backends.base import BLOCK_SIZE, Model, Ops, Rope, Step
from bitnet.errors import ParameterError
from bitnet.quant.tensor import Tensor

Floats = NDArray[np.float32]
Matrix = _core.TernaryWeight | _core.DenseWeight
Angles = Callable[[Rope, int], tuple[Floats, Floats]]


class Symbol(Enum):
    """What differs from step to step, under the names that it has in Step."""

    IDS = "ids"
    POSITIONS = "positions"
    STARTS = "starts"
    WANT = "want"
    BLOCK_TABLES = "block_tables"
    TOP = "top"


STEP = Step(**cast(dict[str, Any], {symbol.value: symbol for symbol in Symbol}))


class Recorder(Ops):
    """Writes operations down instead of running them; its values are the numbers that a Program gives to results.

    Shapes are checked as they are written: ValueError names the operation that does not fit.
    """

    name = "recorder"

    def __init__(self, cache: _core.KVCache, angles: Angles) -> None:
        self.program, self.ropes = _core.Program(cache), dict[Rope, int]()
        self._cache, self._angles = cache, angles

    def embed(self, ids: Any, table: Matrix) -> int:
        expect(ids, Symbol.IDS)
        return self.program.embed(table)

    def rms_norm(self, x: int, weight: Floats, eps: float) -> int:
        return self.program.rms_norm(x, weight, eps)

    def linear(self, x: int, *weights: Matrix) -> tuple[int, ...]:
        return tuple(self.program.linear(x, list(weights)))

    def rope(self, x: int, positions: Any, rope: Rope) -> int:
        expect(positions, Symbol.POSITIONS)
        if rope not in self.ropes:
            table = self._angles(rope, BLOCK_SIZE)
            self.ropes[rope] = self.program.angles(*table, rope.head_dim, rope.style == "interleaved")
        return self.program.rope(x, self.ropes[rope])

    def attention(
        self, q: int, k: int, v: int, cache: Any, layer: int, step: Step, head_dim: int, window: int = 0
    ) -> int:
        if cache is not self._cache or step is not STEP:
            raise ValueError("attention: a plan works on one cache, and on the step that the model was given.")
        return self.program.attention(q, k, v, layer, head_dim, head_dim**-0.5, window)

    def gate(self, act: str, g: int, u: int) -> int:
        return self.program.gate(g, u, act)

    def add(self, x: int, y: int) -> int:
        return self.program.add(x, y)

    def scale(self, x: int, c: float) -> int:
        return self.program.scale(x, c)

    def hadamard(self, x: int, signs: Floats, block: int, inverse: bool = False) -> int:
        return self.program.hadamard(x, signs, block, inverse)

    def take(self, x: int, rows: Any) -> int:
        expect(rows, Symbol.WANT)
        return self.program.take(x)

    def head(self, x: int, weight: Matrix, top: Any = 0) -> int:
        expect(top, Symbol.TOP)
        return self.program.head(x, weight)

    def put(self, tensor: Tensor) -> Any:
        raise NotImplementedError("A plan is written with weights that the backend already has.")

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> Any:
        raise NotImplementedError("A plan is written for a cache that the backend already has.")


def expect(found: Any, symbol: Symbol) -> None:
    if found is not symbol:
        raise ValueError(f"A plan takes step.{symbol.value} here, not {found!r}.")


class Plan:
    """A model on one cache, ready to be replayed: gives the bits that calling the model gives.

    Logits lie in an array of their own. Everything between lies in an arena that the largest step so far decides;
    a step that is not larger allocates nothing else. Several threads may call: they take turns.
    """

    def __init__(self, model: Model, cache: _core.KVCache, angles: Angles) -> None:
        recorder = Recorder(cache, angles)
        logits = model.on(recorder)(STEP, cache)
        self._plan = _core.Plan(recorder.program, logits)
        self._ropes, self._angles, self._most_blocks = recorder.ropes, angles, cache.blocks
        self._blocks = 0  # blocks of positions that the tables of angles cover

    def __call__(self, step: Step) -> Floats:
        """Logits (S, vocab); ParameterError where the step does not fit, before the cache is touched."""
        if step.block_tables.shape[-1] > self._blocks:
            self._reach(step.block_tables.shape[-1])
        try:
            return self._plan.run(step.ids, step.positions, step.starts, step.want, step.block_tables, step.tops)
        except ValueError as error:
            raise ParameterError(str(error)) from None

    def _reach(self, blocks: int) -> None:
        """Angles for the positions of this many blocks. No sequence has more than the cache has."""
        wanted = min(blocks, self._most_blocks)
        if wanted <= self._blocks:
            return
        self._blocks = self._most_blocks
        for rope, index in self._ropes.items():
            cos, sin = self._angles(rope, wanted * BLOCK_SIZE)
            self._plan.set_angles(index, cos, sin)
            self._blocks = min(self._blocks, len(cos) // BLOCK_SIZE)

    @property
    def arena_bytes(self) -> int:
        """Memory for intermediate values."""
        return self._plan.arena_bytes

    def __str__(self) -> str:
        return str(self._plan)
