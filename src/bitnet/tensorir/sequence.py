"""Calls of TensorIR functions, one after the other, as one function: a step of a model with nothing in between.

Each function is compiled once for all of its calls. They are C calls, which pass the addresses of tensors.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.ir import Call as CallExpr
from tvm.ir import GlobalVar, PointerType, PrimType, Var
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from bitnet.tensorir.function import Buffer, Size, i64

PRIVATE = "bitnet.private"


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A tensor. shape: numbers, and variables where only a step knows. data: of a constant."""

    shape: tuple[Size, ...]
    dtype: str = "float32"
    data: Any = None


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """Of the function make(count), whose arguments are `inputs` and then `outputs`."""

    make: partial[Any]
    count: int | None
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        """The same for calls of the same function."""
        return (self.make.func, self.make.args, self.count)

    @property
    def rows(self) -> Size:
        return self.outputs[0].shape[0]


Functions = Mapping[tuple[Any, ...], tuple[GlobalVar, PrimFunc]]  # by Call.key: its name in the module, and what it is


def narrowed(calls: Sequence[Call], rowwise: Iterable[Any], take: Callable[[Value], Call]) -> list[Call]:
    """The same results from less work: what only the wanted rows need is computed for them alone, which after the last
    attention is everything.

    rowwise: makers of functions that treat every row by itself. take: a call that takes the wanted rows of a value.
    """
    taking, tokens, wanted = take(calls[0].outputs[0]).make.func, calls[0].rows, calls[-1].rows
    rowwise = {taking, *rowwise}
    whole: set[Value] = set()  # of which more is read than the wanted rows
    narrow: set[Call] = set()
    for call in reversed(calls):  # every use of a value is known before its origin
        if call.rows is wanted or (call.make.func in rowwise and whole.isdisjoint(call.outputs)):
            narrow.add(call)
        else:
            whole.update(call.inputs)
    found: list[Call] = []
    taken: dict[Value, Value] = {}

    def wanted_rows(value: Value) -> Value:
        if value not in taken and value.shape[0] is tokens:
            found.append(take(value))
            taken[value] = found[-1].outputs[0]
        return taken.get(value, value)

    for call in calls:
        if call not in narrow:
            found.append(call)
        elif call.make.func is taking:
            taken[call.outputs[0]] = wanted_rows(call.inputs[0])
        else:
            inputs = tuple(map(wanted_rows, call.inputs))
            taken |= {value: Value((wanted, *value.shape[1:]), value.dtype) for value in call.outputs}
            found.append(Call(call.make, call.count, inputs, tuple(taken[value] for value in call.outputs)))
    return found


def constants(calls: Sequence[Call]) -> list[Value]:
    return list(dict.fromkeys(value for call in calls for value in call.inputs if value.data is not None))


def sequence(
    name: str, parameters: Sequence[Value], calls: Sequence[Call], functions: Functions, begin: Callable[..., None]
) -> PrimFunc:
    """A function of the parameters, constants(calls), and what the last call writes.

    begin: writes what comes before the calls, given the parameters' buffers.
    """
    memory = Memory(calls)
    arguments = [*parameters, *constants(calls), calls[-1].outputs[0]]
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name})
        for i, value in enumerate(arguments):
            align = 4 if value.dtype == "int32" else 0  # what a caller passes lies anywhere
            memory.places[value] = T.arg(f"x{i}", T.buffer([*map(i64, value.shape)], value.dtype, align=align))
        begin(*(memory.places[value] for value in parameters))
        for call in calls:
            variable, function = functions[call.key]
            values = [*call.inputs, *call.outputs]
            addresses = [memory.place(value).data for value in values]
            T.evaluate(CallExpr(variable, [*addresses, *sizes(function, values)], ret_ty="int32"))
            memory.release(call)
    return builder.get()


class Memory:
    """Where values lie: in a buffer that is theirs from the first call that writes them to the last that reads them."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.places: dict[Value, Buffer] = {}
        self._readers = Counter(value for call in calls for value in {*call.inputs})
        self._kept: set[Value] = set()
        self._free: dict[tuple[str, ...], list[Buffer]] = defaultdict(list)  # by shape and type

    def place(self, value: Value) -> Buffer:
        if value not in self.places:
            free = self._free[kind(value)]
            self.places[value] = free.pop() if free else T.alloc_buffer([*map(i64, value.shape)], value.dtype)
            self._kept.add(value)
        return self.places[value]

    def release(self, call: Call) -> None:
        """What `call` was the last to read."""
        self._readers.subtract({*call.inputs})
        for value in dict.fromkeys(call.inputs):
            if value in self._kept and not self._readers[value]:
                self._free[kind(value)].append(self.places[value])


def kind(value: Value) -> tuple[str, ...]:
    return (value.dtype, *map(str, value.shape))


def private(function: PrimFunc) -> PrimFunc:
    """`function` with the addresses of its tensors for arguments, then sizes(): nothing of them is checked."""
    addresses = [Var(f"{each.name}_data", PointerType(PrimType(each.dtype))) for each in function.params]
    buffers = [tirx.DeclBuffer(each, data=data) for each, data in zip(function.params, addresses, strict=True)]
    made = PrimFunc([*addresses, *variables(function)], tirx.SeqStmt([*buffers, function.body]), PrimType("int32"))
    return made.with_attrs({"s_tir": True, PRIVATE: True})


def is_private(function: Any) -> bool:
    return function.attrs is not None and PRIVATE in function.attrs


def variables(function: PrimFunc) -> list[Var]:
    """In the shapes of its tensors."""
    return list({n.name: n for each in function.params for n in each.shape if isinstance(n, Var)}.values())


def sizes(function: PrimFunc, values: Sequence[Value]) -> list[Any]:
    """What its variables are where its tensors are these values."""
    found = {
        variable.name: size
        for each, value in zip(function.params, values, strict=True)
        for variable, size in zip(each.shape, value.shape, strict=True)
        if isinstance(variable, Var)
    }
    return [i64(found[each.name]) for each in variables(function)]
