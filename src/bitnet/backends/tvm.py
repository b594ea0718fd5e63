"""The operations as TensorIR. Called with numbers they run one by one; on a Writer (relax.py) a model is a module.

Every result has the bits of the backend "cpu": tensorir/function.py says how.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np

os.environ.setdefault("TVM_BIND_THREADS", "0")  # TVM would pin this thread to a processor, and with it all of bitnet

import tvm

from bitnet.backends.base import Ints, Model, Ops, Rope, Step, each_of
from bitnet.backends.cpu import MOST_COLUMNS
from bitnet.backends.tvm_values import Dense, KVCache, Store, Ternary, number, tensor
from bitnet.errors import ParameterError
from bitnet.quant.blocks import BLOCKS
from bitnet.quant.tensor import Tensor, TernaryTensor
from bitnet.tensorir import dense, native, pack, rows, ternary
from bitnet.tensorir.attention import CACHE_TYPES, Heads, attention, cache_shape
from bitnet.tensorir.targets import Target, host
from bitnet.tensorir.ternary import Blocking, Shape

Make = Callable[[int | None], Any]  # a function for so many rows, None: for any number
Output = tuple[tuple[int, ...], str]  # of each row, and its type


@dataclass(frozen=True, slots=True)
class Kernels:
    """What computes products. A caller of its methods says for how many tokens: 1, or None for several.

    blockings: of the ternary products that TensorIR computes; None: the core computes it. What is not there is computed
    as `native` says. others: whether the core computes those with float matrices, and attention.
    """

    native: bool = False
    others: bool = False
    blockings: Mapping[tuple[int | None, Shape], Blocking | None] = field(default_factory=dict)

    def blocking(self, count: int | None, shape: Shape) -> Blocking | None:
        """None: the core's own kernel."""
        usual = None if self.native else Blocking() if count == 1 else Blocking(tokens=4)
        return self.blockings.get((count, shape), usual)

    @property
    def any_native(self) -> bool:
        return self.native or self.others or None in self.blockings.values()


class TVM(Ops):
    name = "tvm"

    def __init__(self, target: Target | None = None, kernels: Kernels = Kernels()) -> None:
        self.target, self.kernels = target or host(), kernels
        if kernels.any_native:
            native.load()
        self.screens = kernels.others
        self._built: dict[Any, Any] = {}
        self._store = Store()

    # Weights and caches.

    def put(self, given: Tensor) -> Ternary | Dense | Any:
        if isinstance(given, TernaryTensor):
            weights, scales = self._store.tensor(pack.packed(given)), self._store.tensor(pack.scales(given))
            return Ternary(given.shape, pack.shape_of(given), weights, scales)
        if len(given.shape) == 1:
            return given.dequantize()
        n, k = given.shape
        if given.dtype in BLOCKS or given.dtype not in dense.TYPES:
            return Dense((n, k), "F32", self._store.tensor(given.dequantize()))
        return Dense((n, k), given.dtype, self._store.tensor(given.data))

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> KVCache:
        if dtype not in CACHE_TYPES:
            raise ParameterError(f"The backend tvm caches {' or '.join(CACHE_TYPES)}, not {dtype}.", "Take --kv f16.")
        return KVCache(tensor(np.zeros(cache_shape(blocks, layers, kv_heads, head_dim), CACHE_TYPES[dtype])), dtype)

    # What a subclass that writes a module does otherwise.

    def call(self, make: partial[Any], like: Any, inputs: Sequence[Any], outputs: Sequence[Output]) -> Any:
        """Run make(count) on `inputs`; its outputs have as many rows as `like`."""
        count = len(like)
        function = self.built(make, self.count(like))
        results = [tvm.runtime.empty((count, *width), dtype) for width, dtype in outputs]
        function(*(tensor(x) if isinstance(x, np.ndarray) else x for x in inputs), *results)
        found = [result.numpy() for result in results]
        return found[0] if len(found) == 1 else tuple(found)

    @property
    def rows(self) -> Any:
        """Where operations come from that treat every token by itself."""
        return native if self.kernels.others else rows

    def count(self, x: Any) -> int | None:
        """1 where x is one token, None where functions for any number are called."""
        return 1 if len(x) == 1 else None

    def width(self, x: Any) -> int:
        return int(x.shape[1])

    def angles(self, rope: Rope, positions: Any) -> tuple[Any, Any]:
        cos, sin = rope.angles(int(positions.max()) + 1)
        return cos, sin

    def sequences(self, step: Step) -> Any:
        """Which sequence each token belongs to, (T,)."""
        return step.sequences

    def built(self, make: partial[Any], count: int | None) -> Any:
        key = (make.func, make.args, count)
        if key not in self._built:
            function = self.made(make, count)
            built = tvm.compile(tvm.IRModule({function.attrs["global_symbol"]: function}), target=llvm(self.target))
            self._built[key] = built[function.attrs["global_symbol"]]
        return self._built[key]

    def made(self, make: partial[Any], count: int | None) -> Any:
        return make(count, gpu=True) if self.target.gpu else make(count)

    # The operations.

    def embed(self, ids: Any, table: Any) -> Any:
        n, k = table.shape
        if isinstance(table, Ternary):
            make = partial(ternary.embed, table.packing)
            return self.call(make, ids, (ids, table.weights, table.scales), [((k,), "float32")])
        make = partial(dense.embed, n, k, table.dtype)
        return self.call(make, ids, (ids, table.data), [((k,), "float32")])

    def rms_norm(self, x: Any, weight: Any, eps: float) -> Any:
        width = self.width(x)
        make = partial(self.rows.rms_norm, width, int(weight.shape[0]), eps)
        return self.call(make, x, (x, weight), [((width,), "float32")])

    def linear(self, x: Any, *weights: Any) -> tuple[Any, ...]:
        found = self.native_linear(x, [w for w in weights if isinstance(w, Ternary) and self.is_native(x, w)])
        quantized: dict[int, Any] = {}  # by the columns that share a sum
        for w in weights:
            if id(w) not in found:
                found[id(w)] = (
                    self.ternary_linear(x, w, quantized) if isinstance(w, Ternary) else self.dense_linear(x, w)
                )
        return tuple(found[id(w)] for w in weights)

    def is_native(self, x: Any, w: Ternary) -> bool:
        return self.kernels.blocking(self.count(x), w.packing) is None

    def native_linear(self, x: Any, weights: Sequence[Ternary]) -> dict[int, Any]:
        """The products of x with each of the weights, by its id, a few at once."""
        found: dict[int, Any] = {}
        for _, same in groupby(sorted(weights, key=scaling), scaling):
            for some in batches(list(same), native.MOST):
                make = partial(native.ternary, tuple(w.packing for w in some))
                inputs = [x, *(part for w in some for part in (w.weights, w.scales))]
                results = self.call(make, x, inputs, [((w.packing.n,), "float32") for w in some])
                results = (results,) if len(some) == 1 else results
                found |= {id(w): result for w, result in zip(some, results, strict=True)}
        return found

    def dense_linear(self, x: Any, w: Dense) -> Any:
        n, k = w.shape
        product = native.dense if self.kernels.others and k % 16 == 0 else dense.linear
        return self.call(partial(product, n, k, w.dtype), x, (x, w.data), [((n,), "float32")])

    def ternary_linear(self, x: Any, w: Ternary, quantized: dict[int, Any]) -> Any:
        shape = w.packing
        blocking = self.kernels.blocking(self.count(x), shape) or Blocking()
        group = shape.group or shape.padded
        if group not in quantized:
            outputs = [((shape.padded,), "int8"), ((shape.padded // group,), "int32"), ((), "float32")]
            quantized[group] = self.call(partial(rows.quantize, shape.k, shape.padded, group), x, (x,), outputs)
        codes, sums, multipliers = quantized[group]
        make = partial(ternary.linear, shape, self.target.schedule, blocking)
        if self.target.gpu:
            make = partial(ternary.linear_dp4a, shape)
        inputs = (codes, sums, w.weights, w.scales, multipliers)
        return self.call(make, x, inputs, [((shape.n,), "float32")])

    def rope(self, x: Any, positions: Any, rope: Rope) -> Any:
        width, (cos, sin) = self.width(x), self.angles(rope, positions)
        make = partial(self.rows.rope, width, rope.head_dim, 2 * int(cos.shape[1]), rope.style == "interleaved")
        return self.call(make, x, (x, positions, cos, sin), [((width,), "float32")])

    def attention(
        self, q: Any, k: Any, v: Any, cache: Any, layer: int, step: Step, head_dim: int, window: int = 0
    ) -> Any:
        width = self.width(q)
        heads = Heads(width // head_dim, cache.kv_heads, head_dim, cache.layers, window, cache.kv)
        at = (step.positions, self.sequences(step), step.block_tables, number(layer))
        inputs = (q, k, v, *at, cache.pages)
        attend = native.attention if self.kernels.others and head_dim % 16 == 0 else attention
        return self.call(partial(attend, heads), q, inputs, [((width,), "float32")])

    def gate(self, act: str, g: Any, u: Any) -> Any:
        width = self.width(g)
        return self.call(partial(self.rows.gate, width, act), g, (g, u), [((width,), "float32")])

    def add(self, x: Any, y: Any) -> Any:
        width = self.width(x)
        return self.call(partial(self.rows.add, width), x, (x, y), [((width,), "float32")])

    def scale(self, x: Any, c: float) -> Any:
        width = self.width(x)
        return self.call(partial(rows.scale, width, c), x, (x,), [((width,), "float32")])

    def hadamard(self, x: Any, signs: Any, block: int, inverse: bool = False) -> Any:
        width = self.width(x)
        make = partial(rows.hadamard, width, block, inverse)
        return self.call(make, x, (x, signs), [((width,), "float32")])

    def take(self, x: Any, wanted: Any) -> Any:
        return x[wanted]

    def head(self, x: Any, weight: Any, top: int | Ints = 0) -> Any:
        if not isinstance(weight, Dense) or weight.screen is None:
            return self.linear(x, weight)[0]
        (n, k), tops = weight.shape, each_of(top, len(x)) if isinstance(top, int) else top
        make = partial(native.head, n, k, weight.dtype)
        return self.call(make, x, (x, weight.data, weight.screen, tops), [((n,), "float32")])

    def add_screen(self, weight: Any) -> None:
        n, k = weight.shape
        if k % 16 == 0 and k <= MOST_COLUMNS:
            weight.screen = self._store.tensor(native.screen(np.from_dlpack(weight.data), n, k, weight.dtype))

    # Whole models.

    def compile(self, model: Model, cache: KVCache) -> Callable[[Step], Any]:
        from bitnet.backends.compiled import resident  # which is written in terms of this class

        return resident(model, self, cache)


def with_native() -> TVM:
    """With the core's kernels, where they were built."""
    return TVM(kernels=Kernels(native=native.exists(), others=native.exists()))


def scaling(w: Ternary) -> tuple[int, bool]:
    return w.packing.group, w.packing.per_row


def batches(items: list[Any], most: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), most):
        yield items[start : start + most]


def llvm(target: Target) -> Any:
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in target.llvm}
    return tvm.target.Target(found, host="llvm") if target.gpu else tvm.target.Target(found)
