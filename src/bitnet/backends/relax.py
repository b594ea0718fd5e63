"""A model as a Relax module: it runs once on a Writer, whose values are expressions. Then a step is one call of TVM.

The module has two functions of the same arguments, `decode` for one token of one sequence and `step` for any numbers:

    ids, positions, sequences (T,), want (S,), tables (B, M), all int32, and cache -> logits (S, vocab)

sequences: which row of `tables` a token's cache blocks are in. The cache is written in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import relax, tirx

import bitnet._core as _core
from bitnet.backends.base import Ints, Rope, Step
from bitnet.backends.tvm import TVM, KVCache, Output, llvm, tensor
from bitnet.errors import ParameterError
from bitnet.tensorir import native, rows
from bitnet.tensorir.attention import CACHE_TYPES, cache_shape
from bitnet.tensorir.targets import Target

ALIGNMENT = 64  # bytes, of arguments
DECODE, STEP, NEW_CACHE = "decode", "step", "new_cache"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """An expression with so many rows: a number, or a variable of Relax."""

    expr: Any
    rows: Any
    width: int = 0


class Writer(TVM):
    """Appends calls to the function that is being written, in place of making them.

    positions: how many a sequence may have, hence the length of the tables of angles.
    """

    name = "relax"

    def __init__(self, ops: TVM, positions: int) -> None:
        super().__init__(ops.target, ops.kernels)
        self.positions = positions
        self.builder = relax.BlockBuilder()
        self._functions: dict[Any, Any] = {}
        self._constants: dict[int, tuple[Any, Any]] = {}  # the array is kept: its id is its name
        self._angles: dict[Rope, tuple[NDArray[Any], NDArray[Any]]] = {}

    def call(self, make: partial[Any], like: Node, inputs: Sequence[Any], outputs: Sequence[Output]) -> Any:
        count, rows_of = self.count(like), like.rows
        key = (make.func, make.args, count)
        if key not in self._functions:
            function = self.made(make, count)
            name = self.builder.get_unique_name(function.attrs["global_symbol"])
            self._functions[key] = self.builder.add_func(function.with_attr("global_symbol", name), name)
        types = [relax.TensorType((rows_of, *width), dtype) for width, dtype in outputs]
        arguments = [each.expr if isinstance(each, Node) else self.constant(each) for each in inputs]
        result = self.builder.emit(relax.call_tir(self._functions[key], arguments, types))
        if len(outputs) == 1:
            return Node(result, rows_of, *outputs[0][0])
        parts = [self.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(outputs))]
        return tuple(Node(part, rows_of, *width) for part, (width, _) in zip(parts, outputs, strict=True))

    def constant(self, value: Any) -> Any:
        if id(value) not in self._constants:
            held = tensor(value) if isinstance(value, np.ndarray) else value
            self._constants[id(value)] = (value, relax.const(held))
        return self._constants[id(value)][1]

    def count(self, x: Node) -> int | None:
        return x.rows if isinstance(x.rows, int) else None

    def width(self, x: Node) -> int:
        return x.width

    def angles(self, rope: Rope, positions: Any) -> tuple[Any, Any]:
        if rope not in self._angles:
            self._angles[rope] = rope.angles(self.positions)
        return self._angles[rope]

    def sequences(self, step: Step) -> Any:
        return step.starts

    def take(self, x: Node, wanted: Any) -> Node:
        if self.count(x) == 1:
            return x
        make = partial(rows.take, x.width)
        return cast(Node, self.call(make, wanted, (x, wanted), [((x.width,), "float32")]))


@dataclass(frozen=True, slots=True, eq=False)
class Pages:
    """A cache as TVM.attention knows it, whose tensor is an argument."""

    pages: Node
    layers: int
    kv_heads: int
    kv: str


def write(model: Any, ops: TVM, kv: str, positions: int) -> tvm.IRModule:
    """The module of a Decoder. kv: the type of its caches; positions: that a sequence may have."""
    writer = Writer(ops, positions)
    on = model.on(writer)
    for name, count in ((DECODE, 1), (STEP, None)):
        write_step(name, count, on, writer, kv)
    write_new_cache(on, writer, kv)
    return writer.builder.finalize()


def write_step(name: str, count: int | None, model: Any, writer: Writer, kv: str) -> None:
    config = model.config
    t, s, b, m, blocks = (tirx.Var(each, "int64") for each in ("t", "s", "b", "m", "blocks"))
    tokens, wanted = (count, count) if count else (t, s)
    shape = cache_shape(0, config.num_hidden_layers, config.num_key_value_heads, config.head_dim)

    def parameter(called: str, *extents: Any, dtype: str = "int32") -> Any:
        return relax.Var(called, relax.TensorType(extents, dtype))

    ids, positions, sequences = (parameter(each, tokens) for each in ("ids", "positions", "sequences"))
    want, tables = parameter("want", wanted), parameter("tables", 1 if count else b, m)
    pages = parameter("cache", blocks, *shape[1:], dtype=CACHE_TYPES[kv])
    step = Step(
        ids=cast(Ints, Node(ids, tokens)),
        positions=cast(Ints, Node(positions, tokens)),
        starts=cast(Ints, Node(sequences, tokens)),
        want=cast(Ints, Node(want, wanted)),
        block_tables=cast(Ints, Node(tables, 0)),
    )
    with writer.builder.function(name, [ids, positions, sequences, want, tables, pages]):
        cache = Pages(Node(pages, 0), config.num_hidden_layers, config.num_key_value_heads, kv)
        writer.builder.emit_func_output(model(step, cache).expr)


def write_new_cache(model: Any, writer: Writer, kv: str) -> None:
    """The third function: a shape (blocks,) -> a cache of zeros, for programs that know nothing of its layout."""
    config, blocks = model.config, tirx.Var("blocks", "int64")
    shape = cache_shape(0, config.num_hidden_layers, config.num_key_value_heads, config.head_dim)[1:]
    function = rows.zeros(shape, CACHE_TYPES[kv], None)
    variable = writer.builder.add_func(function, "zeros")
    wanted = relax.Var("shape", relax.ShapeType([blocks]))
    with writer.builder.function(NEW_CACHE, [wanted]):
        kind = relax.TensorType((blocks, *shape), CACHE_TYPES[kv])
        writer.builder.emit_func_output(writer.builder.emit(relax.call_tir(variable, [], kind)))


def build(module: tvm.IRModule, target: Target) -> Any:
    """An executable of TVM's virtual machine."""
    passes = [
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    return tvm.compile(module, target=llvm(target), relax_pipeline=tvm.transform.Sequential(passes))


class Compiled:
    """A module's functions on one cache, to be called for every step.

    machine: the virtual machine. vocabulary: rows of the embedding. positions: that a sequence may have.
    """

    def __init__(self, machine: Any, cache: KVCache, vocabulary: int, positions: int) -> None:
        self._decode, self._step = machine[DECODE], machine[STEP]
        self._cache, self._vocabulary, self._positions = cache, vocabulary, positions

    def __call__(self, step: Step) -> NDArray[np.float32]:
        """Logits (S, vocab); ParameterError where the step does not fit, before the cache is touched."""
        check(step, self._vocabulary, self._positions, self._cache.blocks)
        use_threads(_core.threads())
        want = step.want if len(step.want) else np.zeros(1, np.int32)  # a row is computed in any case
        run = self._decode if len(step.ids) == 1 and len(want) == 1 else self._step
        inputs = (step.ids, step.positions, step.sequences, want, step.block_tables)
        logits = cast(NDArray[np.float32], np.from_dlpack(run(*map(argument, inputs), self._cache.pages)))
        return logits[: len(step.want)]


def argument(values: Ints) -> Any:
    """A tensor of TVM on a copy that lies as TVM wants it. tvm.runtime.tensor takes twenty times as long."""
    room = np.empty(values.size + ALIGNMENT // 4, np.int32)
    start = -room.__array_interface__["data"][0] % ALIGNMENT // 4
    place = room[start : start + values.size].reshape(values.shape)
    place[...] = values
    return tvm_ffi.from_dlpack(place)


_threads = 0  # that TVM was told to use


def use_threads(count: int) -> None:
    """Let TVM use as many as the core does."""
    global _threads
    if count != _threads:
        tvm.get_global_func("runtime.config_threadpool")(1, count)
        native.set_threads(count)
        _threads = count


def check(step: Step, vocabulary: int, positions: int, blocks: int) -> None:
    for name, found, most in (
        ("ids", step.ids, vocabulary),
        ("positions", step.positions, positions),
        ("want", step.want, len(step.ids)),
        ("block_tables", step.block_tables, blocks),
    ):
        least = -1 if name == "block_tables" else 0
        if len(found) and not least <= int(found.min()) <= int(found.max()) < most:
            raise ParameterError(f"{name} holds a number outside {least} to {most - 1}.")
    for b, (start, end) in enumerate(zip(step.starts[:-1], step.starts[1:], strict=True)):
        if end > start:
            needed = int(step.positions[start:end].max()) // 16 + 1
            if needed > step.block_tables.shape[1] or int(step.block_tables[b, :needed].min()) < 0:
                raise ParameterError(f"Sequence {b} has no cache block for one of its positions.")
