"""Calls of TensorIR functions, one after the other, as one function: a step of a model with nothing in between.

Each function is compiled once for all of its calls. They are C calls, which pass the addresses of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import tvm_ffi
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Call as CallExpr
from tvm.ir import GlobalVar, PointerType, PrimType, Var
from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from bitnet.tensorir.function import Expr, Size, i64
from bitnet.tensorir.native import IN_PLACE

PRIVATE = "bitnet.private"
ALIGNMENT = 64  # bytes
READABLE = 4096  # bytes after the last constant, which kernels may read


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


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """So many bytes, the first at a multiple of ALIGNMENT."""
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -address_of(room) % ALIGNMENT
    return room[start : start + nbytes]


def address_of(tensor: Any) -> int:
    return int(np.from_dlpack(tensor).__array_interface__["data"][0])


class Constants:
    """In one tensor, in the order of their use: weights that lie together lie on large pages."""

    def __init__(self, calls: Iterable[Call]) -> None:
        self.offsets: dict[Value, int] = {}
        end = 0
        for value in constants_of(calls):
            self.offsets[value] = end
            end += -(-np.from_dlpack(value.data).nbytes // ALIGNMENT) * ALIGNMENT
        self.whole = Value((end + READABLE,), "uint8")

    def tensor(self) -> Any:
        place = aligned(self.whole.shape[0])
        place[:] = 0
        for value, offset in self.offsets.items():
            data = np.from_dlpack(value.data).reshape(-1).view(np.uint8)
            place[offset : offset + len(data)] = data
        return tvm_ffi.from_dlpack(place)


def constants_of(calls: Iterable[Call]) -> list[Value]:
    return list(dict.fromkeys(value for call in calls for value in call.inputs if value.data is not None))


def sequence(
    name: str,
    parameters: Sequence[Value],
    calls: Sequence[Call],
    functions: Functions,
    constants: Constants | None,
    begin: Callable[..., None],
) -> PrimFunc:
    """A function of the parameters, the constants, and what the last call writes.

    constants: None: where they lie in this process; they are no parameter then. begin: writes what comes before the
    calls, given the buffers of the parameters, and of the constants.
    """
    memory = Memory(calls)
    held = [constants.whole] if constants else []
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name})
        given = {}
        for i, value in enumerate([*parameters, *held, calls[-1].outputs[0]]):
            align = 4 if value.dtype == "int32" else 0  # what a caller passes lies anywhere
            given[value] = T.arg(f"x{i}", T.buffer([*map(i64, value.shape)], value.dtype, align=align))
        begin(*(given[value] for value in (*parameters, *held)))
        room = T.alloc_buffer([memory.nbytes], "uint8")

        def address(value: Value) -> Expr:
            if value in given:
                return given[value].data
            if value in memory:
                return room.access_ptr("rw", offset=memory.place(value))
            if constants:
                return given[constants.whole].access_ptr("r", offset=i64(constants.offsets[value]))
            return T.reinterpret("handle", T.uint64(address_of(value.data)))

        for call in calls:
            variable, function = functions[call.key]
            values = [*call.inputs, *call.outputs]
            T.evaluate(CallExpr(variable, [*map(address, values), *sizes(function, values)], ret_ty="int32"))
    return builder.get()


@dataclass(slots=True, eq=False)
class Place:
    """Of values that follow each other in the same memory, from the call that writes the first to the last that reads
    one. offset, width: bytes of a row."""

    rows: Size
    width: int
    first: int
    last: int
    offset: int = 0

    def meets(self, other: Place) -> bool:
        return self.rows is other.rows and self.first <= other.last and other.first <= self.last


class Memory:
    """Where results lie: in one buffer, the widest first, each at the lowest offset that is free while it lives
    (core/plan/layout.cpp). A value of r rows begins at r times its offset, in the part of those that have as many."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self._places: dict[Value, Place] = {}
        last = {value: i for i, call in enumerate(calls) for value in call.inputs}
        for i, call in enumerate(calls[:-1]):
            for value in call.outputs:
                over = [x for x in call.inputs if call.make.func in IN_PLACE and last[x] == i and x in self._places]
                new = Place(value.shape[0], row_bytes(value), i, i)
                self._places[value] = place = self._places[over[0]] if over else new
                place.last = last.get(value, i)
        self._widths: dict[Size, int] = {}  # bytes a row, of all values with so many rows
        placed: list[Place] = []
        for place in sorted(dict.fromkeys(self._places.values()), key=lambda place: -place.width):
            for other in sorted(filter(place.meets, placed), key=lambda place: place.offset):
                if place.offset + place.width <= other.offset:
                    break
                place.offset = max(place.offset, other.offset + other.width)
            placed.append(place)
            self._widths[place.rows] = max(self._widths.get(place.rows, 0), place.offset + place.width)

    def __contains__(self, value: Value) -> bool:
        return value in self._places

    def span(self, value: Value) -> tuple[int, int]:
        """Of its place, for one row, in the part of the values with as many rows."""
        place = self._places[value]
        return place.offset, place.offset + row_bytes(value)

    @property
    def nbytes(self) -> Expr:
        return self._before(None)

    def place(self, value: Value) -> Expr:
        """Bytes from the beginning."""
        return self._before(value.shape[0]) + i64(self.span(value)[0]) * i64(value.shape[0])

    def _before(self, rows: Size | None) -> Expr:
        """Bytes of the parts before that of the values with so many rows."""
        total = i64(0)
        for each, width in self._widths.items():
            if each is rows:
                break
            total = total + i64(width) * i64(each)
        return total


def row_bytes(value: Value) -> int:
    size = prod(value.shape[1:]) * np.dtype(value.dtype).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT


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
