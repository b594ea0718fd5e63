"""The operations on a GPU: which kernels they are, and over how many blocks.

Gates, norms, rotations and products wait (values.py) until something reads them, which then does them on its way: a
layer of BitNet is seven launches for one or two tokens, eleven for more. Exact integers and sums of a fixed order make
a row's bits independent of the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.base import Ints, Model, Ops, Rope, Step
from bitnet.backends.cuda import tiles
from bitnet.backends.cuda.cache import TYPES, KVCache, new_cache
from bitnet.backends.cuda.device import THREADS, Array, Device
from bitnet.backends.cuda.graphs import Steps
from bitnet.backends.cuda.many_rows import WIDTH, Codes, many_rows
from bitnet.backends.cuda.screen import Scored, make_screen, screened
from bitnet.backends.cuda.steps import DeviceStep, place
from bitnet.backends.cuda.values import ACTIVATIONS, Prepared, Product, Products, Turned, Value
from bitnet.backends.cuda.weights import DENSE, DenseMatrix, Matrix, TernaryMatrix, put_dense, put_ternary
from bitnet.errors import UnsupportedError
from bitnet.quant.tensor import Tensor, TernaryTensor

FEW = 8  # rows that ternary_gemv takes
FUSED = 2  # rows that every block of ternary_gemv prepares for itself; more are prepared once, before
TOGETHER = 3  # matrices in a launch of ternary_gemv
CELLS = tiles.ROWS * FEW
CHUNK = 128  # numbers, as select.cu has it
PARTS = 256 << 20  # bytes of a step's splits, about: a long prompt has many, and the cache has taken most of the memory
MOST_HEAD_DIM = 256
SHARED = 99 << 10  # bytes of shared memory of a block: more leaves none for a second one
OWN = 1 << 10  # of these a kernel's own


class CUDA(Ops):
    name = "cuda"
    screens = draws = True

    def __init__(self, device: Device, triton: bool | None = None) -> None:
        """triton: whether its kernels are used; None: where it compiles for the card."""
        self.device = device
        self.many = many_rows(device, triton)
        self._shared = min(SHARED, device.shared) - OWN  # for what a launch asks for
        self._angles: dict[Rope, tuple[Array, Array]] = {}
        self._positions = 0  # that tables of angles cover
        self._room: tuple[Array, Array] | None = None  # of products whose columns are split
        self._placed: tuple[Step, DeviceStep] | None = None

    # Weights and caches.

    def put(self, tensor: Tensor) -> Matrix | Array:
        if isinstance(tensor, TernaryTensor):
            return put_ternary(self.device, tensor)
        if len(tensor.shape) == 1:
            return self.device.put(tensor.dequantize())
        return put_dense(self.device, tensor)

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> KVCache:
        if head_dim > MOST_HEAD_DIM or head_dim % 2:
            raise UnsupportedError(f"Heads have {head_dim} dimensions; the GPU takes even ones to {MOST_HEAD_DIM}.")
        cache = new_cache(self.device, layers, blocks, kv_heads, head_dim, dtype)
        if cache.slots > self._positions:
            self._positions = cache.slots
            self._angles.clear()
        return cache

    def angles(self, rope: Rope) -> tuple[Array, Array]:
        """Cosines and sines of every position that a cache has room for."""
        if rope not in self._angles:
            cos, sin = rope.angles(self._positions)
            self._angles[rope] = self.device.put(cos), self.device.put(sin)
        return self._angles[rope]

    def placed(self, step: Step | DeviceStep) -> DeviceStep:
        if isinstance(step, DeviceStep):
            return step
        if self._placed is None or self._placed[0] is not step:
            self._placed = step, place(self.device, step)
        return self._placed[1]

    def ints(self, values: Array | Ints) -> Array:
        return values if isinstance(values, Array) else self.device.put(np.ascontiguousarray(values, np.int32))

    # Launching.

    def each(self, name: str, out: Array, *values: Any) -> Array:
        """A kernel that goes over the numbers of `out`, in strides."""
        count = math.prod(out.shape)
        blocks = min(tiles.count(count, THREADS), 8 * self.device.processors)
        self.device.run(name, blocks, *values, count, out)
        return out

    def array(self, value: Value | Scored) -> Array:
        """The value, computed."""
        if isinstance(value, Array):
            return value
        if isinstance(value, Scored):
            return self.many.dense(value.x, value.weight)
        if isinstance(value, Product):
            if not value.of.done:
                value.of.compute()
            return value.of.done[value.index]
        if value.done is None:
            value.done = self._prepare(value) if isinstance(value, Prepared) else self._turn(value)
        return value.done

    def _prepare(self, value: Prepared) -> Array:
        out = self.device.empty(value.x.shape)
        if value.norm is None:
            return self.each("gate_values", out, value.x, value.up, ACTIVATIONS[value.act])
        return self._norm(value, out)

    def _norm(self, value: Prepared, out: Array) -> Array:
        width = len(value.norm or ())
        runs = math.prod(out.shape) // width
        act = ACTIVATIONS[value.act]
        self.device.run("norm_rows", runs, value.x, value.up, value.norm, act, value.eps, width, out)
        return out

    def _turn(self, value: Turned) -> Array:
        out, rope = self.device.empty(value.shape), value.rope
        cos, sin = self.angles(rope)
        heads, style = value.shape[1] // rope.head_dim, rope.style == "interleaved"
        self.device.run("rope_rows", len(out), value.x, value.positions, cos, sin, style, heads, rope.head_dim, out)
        return out

    # The operations.

    def embed(self, ids: Any, table: Matrix) -> Array:
        ids = self.ints(ids)
        out = self.device.empty((len(ids), table.shape[1]))
        if isinstance(table, TernaryMatrix):
            self.device.run("embed_ternary", len(ids), ids, table.tiles, table.scales, table.group, table.shape[1], out)
        else:
            self.device.run("embed_dense", len(ids), ids, table.data, DENSE[table.dtype], table.shape[1], out)
        return out

    def rms_norm(self, x: Value, weight: Array, eps: float) -> Value:
        if x.shape[1] != len(weight):
            x = self.array(x)
            return self._norm(Prepared(x, norm=weight, eps=eps), self.device.empty(x.shape))
        if isinstance(x, Prepared) and x.norm is None and x.done is None:
            return Prepared(x.x, x.up, x.act, weight, eps)
        return Prepared(self.array(x), norm=weight, eps=eps)

    def linear(self, x: Value, *weights: Matrix) -> tuple[Value, ...]:
        shapes = [(x.shape[0], weight.shape[0]) for weight in weights]
        ternary = [weight for weight in weights if isinstance(weight, TernaryMatrix)]
        if len(ternary) < len(weights) or len({weight.group for weight in ternary}) > 1:
            if len(weights) > 1:
                return tuple(self.linear(x, weight)[0] for weight in weights)
            assert isinstance(weights[0], DenseMatrix)
            return (self.many.dense(self.array(x), weights[0]),)
        # What the product reads is held until it is computed.
        source = x if isinstance(x, Prepared) and x.done is None else Prepared(self.array(x))
        products = Products(lambda residual: self._ternary(source, ternary, residual), shapes)
        return tuple(Product(products, index) for index in range(len(weights)))

    def rope(self, x: Value, positions: Any, rope: Rope) -> Turned:
        return Turned(self.array(x), self.ints(positions), rope)

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        cache: KVCache,
        layer: int,
        step: Step | DeviceStep,
        head_dim: int,
        window: int = 0,
    ) -> Array:
        at = self.placed(step)
        query = self._store(q, k, v, cache, layer, at)
        tokens, heads = query.shape[0], query.shape[1] // head_dim
        splits, queries = tiles.count(at.longest, WIDTH), self.many.queries(heads // cache.kv_heads)
        largest, weights = (self.device.empty((tokens, heads, splits)) for _ in range(2))
        out, of_row = self.device.empty(query.shape), heads * splits * head_dim
        whole = of_row % 4  # or pieces begin at addresses that are no multiples of 16
        for piece in at.queries(queries, tokens if whole else PARTS // (4 * of_row)):
            parts, first = self.device.empty((piece.rows, heads, splits, head_dim)), piece.first
            # Rows count from the step's first: where that one's parts would be.
            places = (parts.address - 4 * first * of_row, largest, weights)
            self.many.attend(query, cache, layer, at, piece.runs, (heads, splits, window), places)
            sums = [each.address + 4 * first * heads * splits for each in (largest, weights)]
            sizes = (window, WIDTH, heads, splits, head_dim, out.address + 4 * first * heads * head_dim)
            self.device.run("join_splits", piece.rows, parts, *sums, at.positions.address + 4 * first, *sizes)
        return out

    def _store(self, q: Value, k: Value, v: Value, cache: KVCache, layer: int, at: DeviceStep) -> Array:
        """Keys and values into the cache; the queries, turned."""
        turns = isinstance(q, Turned) and isinstance(k, Turned) and q.rope == k.rope and not (q.done or k.done)
        rope = q.rope if turns and isinstance(q, Turned) else None
        query, key = (each.x if rope and isinstance(each, Turned) else self.array(each) for each in (q, k))
        value, heads = self.array(v), query.shape[1] // cache.head_dim
        out = self.device.empty(query.shape) if rope else query
        cos, sin = self.angles(rope) if rope else (None, None)
        keys, values, key_scales, value_scales = cache.of_layer(layer)
        style = rope is not None and rope.style == "interleaved"
        self.device.run(
            "store_rows",
            len(query),
            *(query, key, value, at.positions, at.rows, at.block_tables, at.block_tables.shape[1], cos, sin, style),
            *(heads, cache.kv_heads, cache.head_dim, keys, values, key_scales, value_scales, TYPES[cache.dtype]),
            *(cache.slots, out),
        )
        return out

    def gate(self, act: str, g: Value, u: Value) -> Prepared:
        return Prepared(self.array(g), self.array(u), act)

    def add(self, x: Value, y: Value) -> Array:
        x = self.array(x)
        if isinstance(y, Product) and not y.of.done and len(y.of.shapes) == 1:
            y.of.compute(x)
            return y.of.done.pop()  # the sum is not the product: nobody else may read it as that
        y = self.array(y)
        return self.each("add_values", self.device.empty(x.shape), x, y)

    def scale(self, x: Value, c: float) -> Array:
        x = self.array(x)
        return self.each("scale_values", self.device.empty(x.shape), x, c)

    def hadamard(self, x: Value, signs: Array, block: int, inverse: bool = False) -> Array:
        x = self.array(x)
        out, columns = self.device.empty(x.shape), x.shape[1]
        self.device.run(
            "hadamard_rows", (columns // block, len(x)), x, signs, columns, block, inverse, out, shared=4 * block
        )
        return out

    def take(self, x: Value, rows: Any) -> Array:
        x = self.array(x)
        if rows is None:
            return x
        rows = self.ints(rows)
        out = self.device.empty((len(rows), x.shape[1]))
        self.device.run("take_rows", len(rows), x, rows, x.shape[1], out)
        return out

    def head(self, x: Value, weight: Matrix, top: int | Ints = 0) -> Array | Scored:
        if isinstance(weight, DenseMatrix) and weight.screen and 0 < x.shape[0] <= FEW:
            return Scored(self.array(x), weight)
        return self.array(self.linear(x, weight)[0])

    def add_screen(self, weight: Matrix) -> None:
        fits = gemv_shared(FEW, weight.shape[1], 0, False) <= self._shared  # more than bound_logits wants
        if isinstance(weight, DenseMatrix) and fits and not weight.screen:
            weight.screen = make_screen(self, weight)

    def select(self, logits: Array | Scored, tops: Array, room: int, draws: Array | None = None) -> tuple[Array, Array]:
        """(S, vocab), (S,) and (S, 4) -> (S, 1 + 2 * room) and (S,): of each row the `tops` largest, as select.cu has
        them, and the token that is drawn from these; -1 where none was."""
        if isinstance(logits, Scored):
            return screened(self, logits, tops, room, draws)
        return self.largest(logits, tops, room, draws)

    def largest(
        self,
        logits: Array,
        tops: Array,
        room: int,
        draws: Array | None,
        names: Array | None = None,
        counts: Array | None = None,
    ) -> tuple[Array, Array]:
        """`select` of logits that are there. names, counts: their ids, and how many of them a row has; None: all."""
        rows, width = logits.shape
        chunks = self.chunks(logits) if names is None else None
        found, tokens = (self.device.empty(shape, np.int32) for shape in ((rows, 1 + 2 * room), (rows,)))
        self.device.run("select_largest", rows, logits, tops, width, chunks, names, counts, room, found, draws, tokens)
        return found, tokens

    def chunks(self, values: Array) -> Array:
        """(rows, width) -> (rows, chunks), where select.cu looks for the largest of a row."""
        rows, width = values.shape
        out = self.device.empty((rows, tiles.count(width, CHUNK)), np.int32)
        self.device.run("largest_of_chunks", (rows, tiles.count(out.shape[1], THREADS // 32)), values, width, out)
        return out

    def to_host(self, x: Value | Scored) -> NDArray[Any]:
        return self.array(x).numpy()

    def compile(self, model: Model, cache: KVCache) -> Callable[[Step], Any]:
        return Steps(self, model, cache)

    def free_bytes(self) -> int:
        return self.device.free_bytes()

    # Products.

    def _ternary(self, x: Prepared, weights: Sequence[TernaryMatrix], residual: Array | None) -> list[Array]:
        rows, columns = x.shape
        outs = [self.device.empty((rows, weight.shape[0])) for weight in weights]
        if not rows:
            return outs
        group = weights[0].group
        fused = rows <= FUSED and gemv_shared(rows, columns, group, True) <= self._shared
        codes = None if fused else self.quantise(x)
        if rows <= FEW:
            most = rows if fused else few_rows(columns, group, self._shared)
            for first in range(0, rows, most):
                count = min(most, rows - first)
                for i in range(0, len(weights), TOGETHER):
                    part = slice(i, i + TOGETHER)
                    self._gemv(x, codes, first, count, weights[part], outs[part], residual)
            return outs
        assert codes is not None
        for weight, out in zip(weights, outs, strict=True):
            self.many.product(codes, weight, out, residual)
        return outs

    def quantise(self, x: Prepared) -> Codes:
        rows, columns = x.shape
        codes = self.device.empty((rows, tiles.count(columns, tiles.COLUMNS) * tiles.COLUMNS), np.int8)
        multipliers, sums = self.device.empty((rows,)), self.device.empty((rows,), np.int32)
        source = (x.x, x.up, x.norm, ACTIVATIONS[x.act], x.eps, columns)
        fits = 4 * columns <= self._shared
        scratch, shared = (None, 4 * columns) if fits else (self.device.empty(x.shape), 0)
        self.device.run("quantise_rows", rows, *source, scratch, codes, multipliers, sums, shared=shared)
        return codes, multipliers, sums

    def _gemv(
        self,
        x: Prepared,
        codes: Codes | None,
        first: int,
        count: int,
        weights: Sequence[TernaryMatrix],
        outs: Sequence[Array],
        residual: Array | None,
    ) -> None:
        """The rows first to first + count - 1."""
        columns, group = x.shape[1], weights[0].group
        along = tiles.count(columns, tiles.COLUMNS)
        down = sum(tiles.count(weight.shape[0], tiles.ROWS) for weight in weights)
        splits = 1 if group else max(1, min(2 * self.device.processors // down, along // 8))
        workspace, counters = self._splitting() if splits > 1 else (None, None)

        def after(array: Array, row: int) -> int:
            return array.address + first * row

        prepared = (0, 0, 0)
        if codes is not None:
            prepared = (after(codes[0], codes[0].shape[1]), after(codes[1], 4), after(codes[2], 4))
        matrices: list[Any] = []
        for weight, out in zip(weights, outs, strict=True):
            matrices += [weight.tiles, weight.scales, after(out, 4 * out.shape[1]), weight.shape[0]]
        matrices += [0] * (4 * (TOGETHER - len(weights)))
        source = (x.x, x.up, x.norm, ACTIVATIONS[x.act], x.eps, columns)
        self.device.run(
            "ternary_gemv",
            (down, splits),
            *(*source, *prepared, count, *matrices),
            *(after(residual, 4 * residual.shape[1]) if residual else None, group, workspace, counters),
            shared=gemv_shared(count, columns, group, codes is None),
        )

    def _splitting(self) -> tuple[Array, Array]:
        """Zeros that the kernel leaves as zeros. Columns are split where there are fewer rows of tiles than processors,
        so that this never grows: graphs have its address."""
        if self._room is None:
            rows = self.device.processors
            self._room = self.device.zeros((rows, CELLS), np.int32), self.device.zeros((rows,), np.int32)
        return self._room

    def held(self) -> Sequence[Any]:
        """What a graph that is captured now reads beside its own memory, the weights and the cache."""
        return [self._room, *self._angles.values()]


def few_rows(columns: int, group: int, shared: int) -> int:
    """Rows that ternary_gemv takes at once, prepared before: their codes must fit into shared memory."""
    return next((rows for rows in (8, 4, 2) if gemv_shared(rows, columns, group, False) <= shared), 1)


def gemv_shared(tokens: int, columns: int, group: int, prepares: bool) -> int:
    padded = tiles.count(columns, tiles.COLUMNS) * tiles.COLUMNS
    stride = tiles.count(padded, 128) * 128 + 64
    sums = THREADS // 32 * CELLS * 4 + (4 * tokens * (columns // group) if group else 0)
    return tokens * stride + max(sums, 4 * columns if prepares else 0)
