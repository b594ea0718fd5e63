"""The C++ core as a backend: packed weights, integer kernels for this machine's instruction set, paged cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bitnet._core as _core
from bitnet.backends.base import BLOCK_SIZE, Ints, Model, Ops, Rope, Step, each_of
from bitnet.backends.packing import BITS, GROUPED, settled
from bitnet.backends.plan import Plan
from bitnet.errors import ParameterError
from bitnet.quant.random import RandomTernary
from bitnet.quant.stored import StoredTensor
from bitnet.quant.tensor import Tensor, TernaryTensor

Floats = NDArray[np.float32]
Matrix = _core.TernaryWeight | _core.DenseWeight
MOST_COLUMNS = 65536  # of a screen: its sums of bytes fit into 32 bits


class CPU(Ops):
    """packing: how ternary weights are kept, a name in packing.BITS; "auto" is settled when a model is loaded.

    A weight with scales for groups of columns is kept at 2 bits where its packing cannot have them.
    """

    name = "cpu"
    screens = True

    def __init__(self, packing: str = "auto") -> None:
        try:
            _core.isa()
        except ValueError as error:
            raise ParameterError(str(error), "Unset BITNET_ISA to let bitnet choose.") from None
        self._angles: dict[Rope, tuple[Floats, Floats]] = {}
        self._asked, self.packing = packing, "2bit" if packing == "auto" else packing

    def settle(self, count: int, room: int) -> float:
        self.packing = settled(self._asked, count, room)
        return BITS[self.packing]

    def put(self, tensor: Tensor) -> Matrix | Floats:
        if isinstance(tensor, RandomTernary):
            return _core.TernaryWeight.random(*tensor.shape, tensor.seed, float(tensor.scales), self.packing)
        if isinstance(tensor, TernaryTensor):
            packing = self.packing if self.packing in GROUPED or not tensor.group else "2bit"
            return _core.TernaryWeight(tensor.codes, tensor.scales, packing)
        if len(tensor.shape) == 1:
            return tensor.dequantize()
        return _core.DenseWeight(tensor.data, tensor.dtype, tensor.scales)

    def put_stored(self, stored: StoredTensor) -> Matrix | None:
        place = (stored.fd, stored.offset, stored.nbytes, stored.dtype, stored.shape)
        try:
            if stored.scale is None:
                return _core.DenseWeight.read(*place)
            return _core.TernaryWeight.read(*place, stored.scale, self.packing)
        except (ValueError, RuntimeError):
            return None

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> _core.KVCache:
        kind = {"f32": "F32", "f16": "F16", "int8": "I8"}[dtype]
        try:
            return _core.KVCache(layers, blocks, BLOCK_SIZE, kv_heads=kv_heads, head_dim=head_dim, dtype=kind)
        except ValueError as error:
            raise ParameterError(str(error)) from None

    def embed(self, ids: Ints, table: Matrix) -> Floats:
        return _core.embed(table, ids)

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        return _core.rms_norm(x, weight, eps)

    def linear(self, x: Floats, *weights: Matrix) -> tuple[Floats, ...]:
        return tuple(_core.linear(x, list(weights)))

    def rope(self, x: Floats, positions: Ints, rope: Rope) -> Floats:
        cos, sin = self.angles(rope, int(positions.max()) + 1)
        return _core.rope(x, cos, sin, positions, rope.head_dim, rope.style == "interleaved")

    def angles(self, rope: Rope, count: int) -> tuple[Floats, Floats]:
        """Cosines and sines of at least `count` positions; the table grows by doubling."""
        known = self._angles.get(rope)
        if known is None or len(known[0]) < count:
            known = self._angles[rope] = rope.angles(
                max(count, 256) if known is None else max(count, 2 * len(known[0]))
            )
        return known

    def attention(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        cache: _core.KVCache,
        layer: int,
        step: Step,
        head_dim: int,
        window: int = 0,
    ) -> Floats:
        return _core.attention(
            q, k, v, cache, layer, step.positions, step.starts, step.block_tables, head_dim, head_dim**-0.5, window
        )

    def gate(self, act: str, g: Floats, u: Floats) -> Floats:
        return _core.gate(g, u, act)

    def add(self, x: Floats, y: Floats) -> Floats:
        return _core.add(x, y)

    def scale(self, x: Floats, c: float) -> Floats:
        return _core.scale(x, c)

    def hadamard(self, x: Floats, signs: Floats, block: int, inverse: bool = False) -> Floats:
        return _core.hadamard(x, signs, block, inverse)

    def take(self, x: Floats, rows: Ints) -> Floats:
        return x[rows]

    def head(self, x: Floats, weight: Matrix, top: int | Ints = 0) -> Floats:
        if not len(x):
            return np.empty((0, weight.shape[0]), np.float32)
        if isinstance(weight, _core.DenseWeight) and weight.screen_nbytes:
            return _core.head(x, weight, each_of(top, len(x)))[0]
        return _core.linear(x, [weight])[0]

    def add_screen(self, weight: Matrix) -> None:
        if isinstance(weight, _core.DenseWeight) and weight.shape[1] <= MOST_COLUMNS:
            weight.add_screen()

    def compile(self, model: Model, cache: _core.KVCache) -> Plan:
        return Plan(model, cache, self.angles)


def weight_bytes(weights: dict[str, Any]) -> int:
    """Bytes that the weights occupy, a tied table counted once."""
    return sum(w.nbytes + getattr(w, "screen_nbytes", 0) for w in {id(w): w for w in weights.values()}.values())


def packings(weights: Iterable[Any]) -> str:
    """How the ternary weights are kept, "1.6bit" or "1.6bit, 2bit", what keeps most of them first; "" without any."""
    found: Counter[str] = Counter()
    for weight in weights:
        if isinstance(weight, _core.TernaryWeight):
            found[weight.packing] += weight.nbytes
    return ", ".join(name for name, _ in found.most_common())
