"""How a function of TensorIR is written down: sixteen lanes and no contraction, on CPUs and on CUDA alike.

Every sum has the order that the C++ core gives it (core/kernels/simd-inl.h), and no product is fused with a sum, so
that a compiled model computes the bits of the backend "cpu", whatever it is compiled for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx import PrimFunc, Var
from tvm.tirx.script.builder import ir as T

LANES = 16
Expr = Any  # of TensorIR
Buffer = Any
Size = Any  # a Python int, or a variable of TensorIR for what is known only when the function runs


def i64(value: Size) -> Expr:
    return T.int64(value) if isinstance(value, int) else value


def f32(value: float) -> Expr:
    return T.float32(value)


class Function:
    """A PrimFunc while it is written; `result` afterwards.

    gpu: whether it is for CUDA, where the outermost loop becomes blocks and lanes become a loop.
    """

    def __init__(self, name: str, gpu: bool = False) -> None:
        self.name, self.gpu = name, gpu
        self._stack = ExitStack()

    def __enter__(self) -> Function:
        self._builder = self._stack.enter_context(IRBuilder())
        self._stack.enter_context(T.prim_func(s_tir=True))
        T.func_name(self.name)
        T.func_attr({"global_symbol": self.name})
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)

    @property
    def result(self) -> PrimFunc:
        return self._builder.get()

    def size(self, name: str, known: int | None = None) -> Size:
        """An extent: `known`, or one that the arguments' shapes will tell."""
        return Var(name, "int64") if known is None else known

    def tensor(self, name: str, shape: Sequence[Size], dtype: str = "float32") -> Buffer:
        """The next argument."""
        return T.arg(name, T.buffer([i64(n) for n in shape], dtype))

    def local(self, count: int, dtype: str = "float32") -> Buffer:
        # On a CPU memory of any other scope is no stack, which alone becomes registers.
        return T.alloc_buffer([i64(count)], dtype, scope="local" if self.gpu else "global")

    def each(self, count: Size) -> AbstractContextManager[Expr]:
        """The outermost loop, whose rounds do not depend on each other."""
        if self.gpu:
            return T.thread_binding(i64(0), i64(count), "blockIdx.x")
        return self.serial(count) if isinstance(count, int) and count == 1 else T.parallel(i64(0), i64(count))

    def serial(self, count: Size, first: Size = 0) -> AbstractContextManager[Expr]:
        return T.serial(i64(first), i64(count))

    def lanes(self, count: int = LANES) -> AbstractContextManager[Expr]:
        return T.serial(i64(0), i64(count)) if self.gpu or count < 2 else T.vectorized(i64(0), i64(count))

    @contextmanager
    def vectors(self, width: int) -> Iterator[Columns]:
        """A row of `width` columns in vectors of sixteen; see Columns."""
        yield Columns(self, width)

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        with T.If(condition), T.Then():
            yield

    def store(self, buffer: Buffer, value: Expr, *index: Size) -> None:
        T.buffer_store(buffer, value, [i64(i) for i in index])

    def fill(self, buffer: Buffer, value: Expr, count: int = LANES, first: Size = 0) -> None:
        with self.lanes(count) as lane:
            self.store(buffer, value, first + lane)

    def mul(self, a: Expr, b: Expr) -> Expr:
        """a * b, rounded to float32: what adds to it cannot be fused with it."""
        return T.call_pure_extern("float32", "__fmul_rn", a, b) if self.gpu else self.rounded(a * b)

    def rounded(self, x: Expr) -> Expr:
        """x as it is: neither TVM, which takes (a + b) - b for a, nor LLVM sees through it."""
        if self.gpu:
            return T.call_pure_extern("float32", "__fmul_rn", x, f32(1.0))
        fence = T.llvm_lookup_intrinsic_id("llvm.arithmetic.fence")
        return T.call_llvm_pure_intrin(fence, x, dtype="float32")

    def larger(self, a: Expr, b: Expr) -> Expr:
        return T.Select(a > b, a, b)

    def smaller(self, a: Expr, b: Expr) -> Expr:
        return T.Select(a < b, a, b)

    def fold(self, lanes: Buffer, larger: bool = False) -> Expr:
        """Sixteen lanes as one: l with l + 8, then l + 4, l + 2, l + 1. They are overwritten."""
        for half in (8, 4, 2):
            with self.lanes(half) as lane:
                a, b = lanes[lane], lanes[lane + half]
                self.store(lanes, self.larger(a, b) if larger else a + b, lane)
        return self.larger(lanes[0], lanes[1]) if larger else lanes[0] + lanes[1]

    def exp(self, x: Expr) -> Expr:
        """The core's `exponential`, term by term."""
        lowest, rounder = f32(-87.0), f32(12582912.0)  # 1.5 * 2^23 leaves a rounded float in its low bits
        x = T.Bind(x)
        clamped = T.Bind(self.smaller(self.larger(x, lowest), f32(88.0)))
        shifted = T.Bind(self.rounded(self.mul(clamped, f32(1.44269504088896341)) + rounder))
        n = T.Bind(shifted - rounder)
        r = T.Bind((clamped - self.mul(n, f32(0.693359375))) - self.mul(n, f32(-2.12194440e-4)))
        p = f32(1.9875691500e-4)
        for term in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            p = self.mul(p, r) + f32(term)
        p = self.mul(p, self.mul(r, r)) + r + f32(1.0)
        exponent = T.shift_left(T.reinterpret("int32", shifted), T.int32(23))
        return T.Select(x >= lowest, T.reinterpret("float32", T.reinterpret("int32", p) + exponent), f32(0.0))


class Columns:
    """The columns of a row, sixteen at a time: a body is written once for whole vectors and once for the rest."""

    def __init__(self, function: Function, width: int) -> None:
        self.function, self.width = function, width

    def for_each(self, body: Any) -> None:
        """body(column, lane) for every column; lane is its place in its vector."""
        f, whole = self.function, self.width // LANES
        if whole:
            with f.serial(whole) as i, f.lanes() as lane:
                body(i * LANES + lane, lane)
        if rest := self.width % LANES:
            with f.serial(rest) as lane:
                body(whole * LANES + lane, lane)
