"""The steps of a model as a module that TVM compiles: for this process, or whole, for a library.

A step becomes one function of TensorIR, `decode_into` or `step_into`, of its parameters (Written, in writer.py), in a
library then all constants in one tensor, and the logits. ValueError, before the cache is touched, where it does not
fit. A library has functions of Relax besides: `weights` gives that tensor, `decode` and `step` take the parameters and
return the logits, `new_cache` makes a cache. On a GPU, `decode` and `step` call each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.tirx.script.builder import ir as T

from bitnet.backends.tvm import TVM, llvm
from bitnet.backends.writer import Written, cache_sizes, written
from bitnet.tensorir import native, rows
from bitnet.tensorir.attention import CACHE_TYPES, cache_shape
from bitnet.tensorir.check import check_step
from bitnet.tensorir.function import Buffer
from bitnet.tensorir.sequence import Constants, Value, constants_of, is_private, private, sequence
from bitnet.tensorir.targets import Target

NEW_CACHE, WEIGHTS = "new_cache", "weights"


def into(name: str) -> str:
    """The function that writes the logits of a step to an argument."""
    return f"{name}_into"


def write(model: Any, ops: TVM, kv: str, positions: int) -> tvm.IRModule:
    """The module of a library of a Decoder."""
    steps = written(model, ops, kv, positions)
    module = Module(model, ops, positions, steps)
    if ops.target.gpu:
        for name, step in steps.items():
            module.add_calls(name, step)
    else:
        constants = Constants(call for step in steps.values() for call in step.calls)
        held = {constants.whole: relax.const(constants.tensor())}
        module.add_weights(held[constants.whole])
        for name, step in steps.items():
            module.add_step(name, step, module.add_into(name, step, constants), held)
    module.add_new_cache(cache_shape(0, *cache_sizes(model.config))[1:], CACHE_TYPES[kv])
    return module.builder.finalize()


def write_resident(model: Any, ops: TVM, positions: int, steps: Mapping[str, Written]) -> tvm.IRModule:
    """The module of steps that read constants where they lie in this process."""
    module = Module(model, ops, positions, steps)
    for name, step in steps.items():
        module.add_into(name, step, None)
    return module.builder.finalize()


class Module:
    """While it is written: the functions that its steps call, and what is added to it."""

    def __init__(self, model: Any, ops: TVM, positions: int, steps: Mapping[str, Written]) -> None:
        self.builder = relax.BlockBuilder()
        self._ops, self._limits = ops, (model.config.vocab_size, positions)
        self._functions: dict[Any, tuple[Any, Any]] = {}
        for call in (call for step in steps.values() for call in step.calls):
            if call.key not in self._functions:
                self._functions[call.key] = self._added(ops.made(call.make, call.count))

    def _added(self, function: Any) -> tuple[Any, Any]:
        name = self.builder.get_unique_name(function.attrs["global_symbol"])
        made = function.with_attr("global_symbol", name) if self._ops.target.gpu else private(function)
        return self.builder.add_func(made, name), function

    def add_into(self, name: str, step: Written, constants: Constants | None) -> Any:
        """A function of TensorIR that makes the step's calls. constants: as sequence() has them."""
        on_huge_pages = self._ops.kernels.any_native

        def begin(*parameters: Buffer) -> None:
            check_step(*self._limits, *parameters[: len(step.parameters)])
            if constants and on_huge_pages:
                native.on_huge_pages(parameters[-1])

        parameters = [*step.parameters.values()]
        function = sequence(into(name), parameters, step.calls, self._functions, constants, begin)
        return self.builder.add_func(function, into(name))

    def add_step(self, name: str, step: Written, called: Any, held: Mapping[Value, Any]) -> None:
        """A function of Relax that gives what `called` writes, whose last inputs are `held`."""
        known = variables(step)
        with self.builder.function(name, [*known.values()]):
            result = self._emit(called, [*known.values(), *held.values()], step.calls[-1].outputs)
            self.builder.emit_func_output(result[0])

    def add_calls(self, name: str, step: Written) -> None:
        """A function of Relax that makes the step's calls, with its own constants."""
        known = variables(step)
        with self.builder.function(name, [*known.values()]):
            known |= {each: relax.const(each.data) for each in constants_of(step.calls)}
            for call in step.calls:
                function, _ = self._functions[call.key]
                results = self._emit(function, [known[each] for each in call.inputs], call.outputs)
                known |= dict(zip(call.outputs, results, strict=True))
            self.builder.emit_func_output(known[step.calls[-1].outputs[0]])

    def add_weights(self, whole: Any) -> None:
        with self.builder.function(WEIGHTS, []):
            self.builder.emit_func_output(whole)

    def add_new_cache(self, shape: tuple[int, ...], dtype: str) -> None:
        """A shape (blocks,) -> a cache of zeros, for programs that know nothing of its layout."""
        blocks = tirx.Var("blocks", "int64")
        zeros = self.builder.add_func(rows.zeros(shape, dtype, None), "zeros")
        wanted = relax.Var("shape", relax.ShapeType([blocks]))
        with self.builder.function(NEW_CACHE, [wanted]):
            self.builder.emit_func_output(self._emit(zeros, [], [Value((blocks, *shape), dtype)])[0])

    def _emit(self, function: Any, arguments: Sequence[Any], outputs: Sequence[Value]) -> list[Any]:
        result = self.builder.emit(relax.call_tir(function, arguments, [type_of(each) for each in outputs]))
        if len(outputs) == 1:
            return [result]
        return [self.builder.emit(relax.TupleGetItem(result, i)) for i in range(len(outputs))]


def variables(step: Written) -> dict[Value, Any]:
    return {each: relax.Var(name, type_of(each)) for name, each in step.parameters.items()}


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


def build_resident(module: tvm.IRModule, target: Target) -> Any:
    """A module whose functions can be called."""
    return tvm.compile(module, target=llvm(target), tir_pipeline="bitnet").jit()


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
