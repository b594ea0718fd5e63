"""A model as a Relax module: it runs once on a Writer, whose values are expressions. Then a step is one call of TVM.

The module has two functions of the same arguments, `decode` for one token of one sequence and `step` for any numbers:

    ids, positions, sequences (T,), want, top (S,), tables (B, M), all int32, and cache -> logits (S, vocab)

sequences: which row of `tables` a token's cache blocks are in. top: how many of the likeliest logits are needed of each
wanted row, 0: all; others may be -inf. The cache is written in place. ValueError, before, where a step does not fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.tirx.script.builder import ir as T

import bitnet._core as _core
from bitnet.backends.base import Ints, Rope, Step
from bitnet.backends.tvm import TVM, KVCache, Output, llvm, tensor
from bitnet.errors import ParameterError
from bitnet.tensorir import dense, native, rows, ternary
from bitnet.tensorir.attention import CACHE_TYPES, cache_shape
from bitnet.tensorir.check import check_step
from bitnet.tensorir.sequence import Call, Constants, Value, is_private, narrowed, private, sequence
from bitnet.tensorir.targets import Target

DECODE, STEP, NEW_CACHE = "decode", "step", "new_cache"
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
            held = tensor(array) if isinstance(array, np.ndarray) else array
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


def write(model: Any, ops: TVM, kv: str, positions: int) -> tvm.IRModule:
    """The module of a Decoder. kv: the type of its caches; positions: that a sequence may have."""
    writer = Writer(ops, positions)
    on = model.on(writer)
    steps = {name: step_of(count, on, writer, kv) for name, count in ((DECODE, 1), (STEP, None))}
    module = Module(ops, [call for _, calls in steps.values() for call in calls])

    def begin(weights: Any, *parameters: Any) -> None:
        check_step(model.config.vocab_size, positions, *parameters)
        if ops.kernels.any_native:
            native.on_huge_pages(weights)

    for name, (parameters, calls) in steps.items():
        module.add_step(name, parameters, calls, begin)
    module.add_new_cache(cache_shape(0, *cache_sizes(model.config))[1:], CACHE_TYPES[kv])
    return module.builder.finalize()


def cache_sizes(config: Any) -> tuple[int, int, int]:
    return config.num_hidden_layers, config.num_key_value_heads, config.head_dim


def step_of(count: int | None, model: Any, writer: Writer, kv: str) -> tuple[dict[str, Value], list[Call]]:
    """The parameters of a step, and the calls that it is made of."""
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
        return parameters, writer.calls

    def take(value: Value) -> Call:
        taken = Value((wanted, *value.shape[1:]), value.dtype)
        return Call(partial(rows.take, int(value.shape[1])), None, (value, parameters["want"]), (taken,))

    return parameters, narrowed(writer.calls, ROWWISE, take)


class Module:
    """Of Relax, while it is written. calls: of all its steps."""

    def __init__(self, ops: TVM, calls: Sequence[Call]) -> None:
        self.builder = relax.BlockBuilder()
        self._gpu = ops.target.gpu
        self._functions: dict[Any, tuple[Any, Any]] = {}
        for call in calls:
            if call.key not in self._functions:
                self._functions[call.key] = self.added(ops.made(call.make, call.count))
        self._constants = Constants(calls)
        self._held = {} if self._gpu else {self._constants.whole: relax.const(self._constants.tensor())}

    def added(self, function: Any) -> tuple[Any, Any]:
        name = self.builder.get_unique_name(function.attrs["global_symbol"])
        made = function.with_attr("global_symbol", name) if self._gpu else private(function)
        return self.builder.add_func(made, name), function

    def add_step(self, name: str, parameters: Mapping[str, Value], calls: Sequence[Call], begin: Any) -> None:
        """A function of Relax. On a CPU it calls one of TensorIR, on a GPU one for each of the calls."""
        known = {each: relax.Var(called, type_of(each)) for called, each in parameters.items()}
        if not self._gpu:
            whole = sequence(f"{name}_calls", [*known], calls, self._functions, self._constants, begin)
            variable = self.builder.add_func(whole, f"{name}_calls")
        with self.builder.function(name, [*known.values()]):
            known |= self._held
            if self._gpu:
                result = self.emit_each(calls, known)
            else:
                result = self.emit(variable, [*known.values()], calls[-1].outputs)[0]
            self.builder.emit_func_output(result)

    def emit(self, function: Any, arguments: Sequence[Any], outputs: Sequence[Value]) -> list[Any]:
        result = self.builder.emit(relax.call_tir(function, arguments, [type_of(each) for each in outputs]))
        if len(outputs) == 1:
            return [result]
        return [self.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(outputs))]

    def emit_each(self, calls: Sequence[Call], known: dict[Value, Any]) -> Any:
        known |= {each: relax.const(each.data) for call in calls for each in call.inputs if each.data is not None}
        for call in calls:
            results = self.emit(self._functions[call.key][0], [known[each] for each in call.inputs], call.outputs)
            known |= dict(zip(call.outputs, results, strict=True))
        return known[calls[-1].outputs[0]]

    def add_new_cache(self, shape: tuple[int, ...], dtype: str) -> None:
        """A shape (blocks,) -> a cache of zeros, for programs that know nothing of its layout."""
        blocks = tirx.Var("blocks", "int64")
        zeros = self.builder.add_func(rows.zeros(shape, dtype, None), "zeros")
        wanted = relax.Var("shape", relax.ShapeType([blocks]))
        with self.builder.function(NEW_CACHE, [wanted]):
            self.builder.emit_func_output(self.emit(zeros, [], [Value((blocks, *shape), dtype)])[0])


def type_of(value: Value) -> Any:
    return relax.TensorType(value.shape, value.dtype)


@tvm.transform.module_pass(opt_level=0)
def hide_private(module: tvm.IRModule, context: Any) -> tvm.IRModule:
    """AttachGlobalSymbol makes all functions public."""
    return changed(module, lambda function: function.without_attr("global_symbol"))


@tvm.transform.module_pass(opt_level=0)
def on_cpu(module: tvm.IRModule, context: Any) -> tvm.IRModule:
    """What MakePackedAPI does to public functions: says where the memory is that they allocate, and returns 0."""

    def placed(function: Any) -> Any:
        body = tirx.AttrStmt("default", "device_type", T.int32(1), function.body)
        body = tirx.AttrStmt("default", "device_id", T.int32(0), body)
        return function.with_body(tirx.SeqStmt([body, tirx.stmt.Return(T.int32(0))]))

    return changed(module, placed)


def changed(module: tvm.IRModule, change: Callable[[Any], Any]) -> tvm.IRModule:
    """The module with another form of its private functions."""
    found = {name: change(f) if is_private(f) else f for name, f in module.functions.items()}
    return tvm.IRModule(found, attrs=module.attrs)


def pipeline() -> tuple[Any, Any, Any]:
    """TVM's usual way of lowering TensorIR."""
    lower, *finish = tvm.tirx.get_tir_pipeline("default")
    return tvm.transform.Sequential([lower, on_cpu]), *finish


tvm.tirx.register_tir_pipeline("bitnet", pipeline)


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
        hide_private,
    ]
    lower = tvm.transform.Sequential(passes)
    return tvm.compile(module, target=llvm(target), relax_pipeline=lower, tir_pipeline="bitnet")


ZERO = np.zeros(1, np.int32)


class Compiled:
    """A module's functions on one cache, to be called for every step.

    machine: the virtual machine.
    """

    def __init__(self, machine: Any, cache: KVCache) -> None:
        self._decode, self._step, self._cache = machine[DECODE], machine[STEP], cache

    def __call__(self, step: Step) -> NDArray[np.float32]:
        """Logits (S, vocab); ParameterError where the step does not fit, before the cache is touched."""
        use_threads(_core.threads())
        one = len(step.ids) == len(step.want) == 1
        rows = (ZERO, ZERO) if len(step.want) == 0 else (step.want, step.tops)  # one is computed in any case
        sequences = ZERO if len(step.ids) == 1 else step.sequences
        try:
            logits = (self._decode if one else self._step)(
                step.ids, step.positions, sequences, *rows, step.block_tables, self._cache.pages
            )
        except ValueError as error:
            raise ParameterError(str(error)) from None
        found: Any = np.from_dlpack(logits)
        return found if len(step.want) else found[:0]  # type: ignore[no-any-return]


_threads = 0  # that TVM was told to use


def use_threads(count: int) -> None:
    """Let TVM use as many as the core does."""
    global _threads
    if count != _threads:
        os.environ["TVM_NUM_THREADS"] = str(count)  # or else TVM asks the system before every loop
        tvm.get_global_func("runtime.config_threadpool")(1, count)
        native.set_threads(count)
        _threads = count
