"""A model as lists of calls: it runs once on a Writer, whose values have shapes and no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from bitnet.backends.base import Ints, Rope, Step
from bitnet.backends.tvm import TVM, Output
from bitnet.tensorir import dense, native, rows, ternary
from bitnet.tensorir.attention import CACHE_TYPES, cache_shape
from bitnet.tensorir.sequence import Call, Value, narrowed

DECODE, STEP = "decode", "step"  # one token of one sequence; any numbers of both
ROWWISE = (
    *(rows.rms_norm, rows.gate, rows.add, rows.scale, rows.hadamard, rows.quantize, dense.linear, ternary.linear),
    *(native.rms_norm, native.gate, native.add, native.ternary, native.dense),
)


class Writer(TVM):
    """Writes calls down in place of making them.

    positions: how many a sequence may have, hence the length of the tables of angles.
    """

    name = "relax"

    def __init__(self, ops: TVM, positions: int) -> None:
        super().__init__(ops.target, ops.kernels)
        self.positions = positions
        self.calls: list[Call] = []
        self._constants: dict[int, tuple[Any, Value]] = {}  # the array is kept: its id is its name
        self._angles: dict[Rope, tuple[NDArray[Any], NDArray[Any]]] = {}

    def call(self, make: partial[Any], like: Value, inputs: Sequence[Any], outputs: Sequence[Output]) -> Any:
        results = tuple(Value((like.shape[0], *width), dtype) for width, dtype in outputs)
        values = tuple(each if isinstance(each, Value) else self.constant(each) for each in inputs)
        self.calls.append(Call(make, self.count(like), values, results))
        return results[0] if len(results) == 1 else results

    def constant(self, array: Any) -> Value:
        if id(array) not in self._constants:
            held = self._store.tensor(array) if isinstance(array, np.ndarray) else array
            shape = tuple(int(n) for n in held.shape)
            self._constants[id(array)] = (array, Value(shape, str(held.dtype), held))
        return self._constants[id(array)][1]

    def count(self, x: Value) -> int | None:
        return x.shape[0] if isinstance(x.shape[0], int) else None

    def angles(self, rope: Rope, positions: Any) -> tuple[Any, Any]:
        if rope not in self._angles:
            self._angles[rope] = rope.angles(self.positions)
        return self._angles[rope]

    def sequences(self, step: Step) -> Any:
        return step.starts

    def take(self, x: Value, wanted: Any) -> Value:
        if self.count(x) == 1:
            return x
        make = partial(rows.take, self.width(x))
        return cast(Value, self.call(make, wanted, (x, wanted), [(x.shape[1:], x.dtype)]))


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """A cache as TVM.attention knows it, whose tensor is an argument."""

    pages: Value
    layers: int
    kv_heads: int
    kv: str


@dataclass(frozen=True, slots=True)
class Written:
    """A step: its parameters by their names, ids, positions, sequences (T,), want, top (S,), tables (B, M), all int32,
    and cache, and the calls that it is made of, of which the last gives the logits (S, vocab).

    sequences: which row of `tables` a token's cache blocks are in. top: how many of the likeliest logits are needed of
    each wanted row, 0: all; others may be -inf. The cache is written in place.
    """

    parameters: dict[str, Value]
    calls: list[Call]


def written(model: Any, ops: TVM, kv: str, positions: int) -> dict[str, Written]:
    """The steps of a Decoder, by name. kv: the type of its caches; positions: that a sequence may have."""
    writer = Writer(ops, positions)
    on = model.on(writer)
    return {name: step_of(count, on, writer, kv) for name, count in ((DECODE, 1), (STEP, None))}


def cache_sizes(config: Any) -> tuple[int, int, int]:
    return config.num_hidden_layers, config.num_key_value_heads, config.head_dim


def step_of(count: int | None, model: Any, writer: Writer, kv: str) -> Written:
    t, s, b, m, blocks = (tirx.Var(each, "int64") for each in ("t", "s", "b", "m", "blocks"))
    tokens, wanted = (count, count) if count else (t, s)
    parameters = {each: Value((tokens,), "int32") for each in ("ids", "positions", "sequences")}
    parameters |= {each: Value((wanted,), "int32") for each in ("want", "top")}
    parameters["tables"] = Value((1 if count else b, m), "int32")
    layers, kv_heads, head_dim = cache_sizes(model.config)
    parameters["cache"] = Value((blocks, *cache_shape(0, layers, kv_heads, head_dim)[1:]), CACHE_TYPES[kv])
    step = Step(
        ids=cast(Ints, parameters["ids"]),
        positions=cast(Ints, parameters["positions"]),
        starts=cast(Ints, parameters["sequences"]),
        want=cast(Ints, parameters["want"]),
        block_tables=cast(Ints, parameters["tables"]),
        top=cast(Ints, parameters["top"]),
    )
    writer.calls = []
    model(step, Pages(parameters["cache"], layers, kv_heads, kv))
    if count:
        return Written(parameters, writer.calls)

    def take(value: Value) -> Call:
        taken = Value((wanted, *value.shape[1:]), value.dtype)
        return Call(partial(rows.take, int(value.shape[1])), None, (value, parameters["want"]), (taken,))

    return Written(parameters, narrowed(writer.calls, ROWWISE, take))
