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
from bitnet.backends.cuda.device import THREADS, Array, Device, TritonKernel, kernels
from bitnet.backends.cuda.graphs import Steps
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
DENSE_ROWS, DENSE_TOKENS = 128, 32  # of a program of dense_gemm; at least FEW tokens
WIDTH = 128  # positions of a split of attention
PARTS = 256 << 20  # bytes of a step's splits, about: a long prompt has many, and the cache has taken most of the memory
QUERIES = 64  # rows and heads of a program of attention
MOST_HEAD_DIM = 256
SMALL_SHARED = 98 << 10  # bytes of shared memory that any card has for a block, and a kernel's own beside them
POINTERS = {"F32": "*fp32", "F16": "*fp16", "BF16": "*bf16"}


class CUDA(Ops):
    name = "cuda"
    screens = True

    def __init__(self, device: Device) -> None:
        self.device, self.kernels = device, kernels()
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

    def run(self, name: str, grid: int | tuple[int, int], *values: Any, shared: int = 0) -> None:
        """A kernel in CUDA C++; arrays stand for their addresses, None for none."""
        x, y = (grid, 1) if isinstance(grid, int) else grid
        if x and y:
            self.device.launch(self.kernels[name], (x, y, 1), [address(value) for value in values], shared)

    def each(self, name: str, out: Array, *values: Any) -> Array:
        """A kernel that goes over the numbers of `out`, in strides."""
        count = math.prod(out.shape)
        blocks = min(tiles.count(count, THREADS), 8 * self.device.processors)
        self.run(name, blocks, *values, count, out)
        return out

    def array(self, value: Value | Scored) -> Array:
        """The value, computed."""
        if isinstance(value, Array):
            return value
        if isinstance(value, Scored):
            return self._dense(value.x, value.weight)
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
        self.run("norm_rows", runs, value.x, value.up, value.norm, act, value.eps, width, out)
        return out

    def _turn(self, value: Turned) -> Array:
        out, rope = self.device.empty(value.shape), value.rope
        cos, sin = self.angles(rope)
        heads, style = value.shape[1] // rope.head_dim, rope.style == "interleaved"
        self.run("rope_rows", len(out), value.x, value.positions, cos, sin, style, heads, rope.head_dim, out)
        return out

    # The operations.

    def embed(self, ids: Any, table: Matrix) -> Array:
        ids = self.ints(ids)
        out = self.device.empty((len(ids), table.shape[1]))
        if isinstance(table, TernaryMatrix):
            self.run("embed_ternary", len(ids), ids, table.tiles, table.scales, table.group, table.shape[1], out)
        else:
            self.run("embed_dense", len(ids), ids, table.data, DENSE[table.dtype], table.shape[1], out)
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
            return (self._dense(self.array(x), weights[0]),)
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
        group = heads // cache.kv_heads
        wide = 1 << (group - 1).bit_length()
        queries, splits = max(QUERIES, wide), tiles.count(at.longest, WIDTH)
        largest, weights = (self.device.empty((tokens, heads, splits)) for _ in range(2))
        kernel = attention_kernel(cache.dtype, group, head_dim, queries, self.device.arch)
        places = [at.positions, at.block_tables, at.block_tables.shape[1], cache.slots, heads, splits, head_dim**-0.5]
        out, of_row = self.device.empty(query.shape), heads * splits * head_dim
        whole = of_row % 4  # or pieces begin at addresses that are no multiples of 16
        for piece in at.queries(queries // wide, tokens if whole else PARTS // (4 * of_row)):
            parts, first = self.device.empty((piece.rows, heads, splits, head_dim)), piece.first
            # Rows count from the step's first: where that one's parts would be.
            arguments = [query, *cache.of_layer(layer), piece.runs, *places, window]
            arguments += [parts.address - 4 * first * of_row, largest, weights, head_dim]
            grid = (len(piece.runs), cache.kv_heads, splits)
            self.device.launch(kernel, grid, [address(value) for value in arguments])
            sums = [each.address + 4 * first * heads * splits for each in (largest, weights)]
            sizes = (window, WIDTH, heads, splits, head_dim, out.address + 4 * first * heads * head_dim)
            self.run("join_splits", piece.rows, parts, *sums, at.positions.address + 4 * first, *sizes)
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
        self.run(
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
        self.run("hadamard_rows", (columns // block, len(x)), x, signs, columns, block, inverse, out, shared=4 * block)
        return out

    def take(self, x: Value, rows: Any) -> Array:
        x = self.array(x)
        if rows is None:
            return x
        rows = self.ints(rows)
        out = self.device.empty((len(rows), x.shape[1]))
        self.run("take_rows", len(rows), x, rows, x.shape[1], out)
        return out

    def head(self, x: Value, weight: Matrix, top: int | Ints = 0) -> Array | Scored:
        if isinstance(weight, DenseMatrix) and weight.screen and 0 < x.shape[0] <= FEW:
            return Scored(self.array(x), weight)
        return self.array(self.linear(x, weight)[0])

    def add_screen(self, weight: Matrix) -> None:
        fits = gemv_shared(FEW, weight.shape[1], 0, False) <= SMALL_SHARED  # more than bound_logits wants
        if isinstance(weight, DenseMatrix) and fits and not weight.screen:
            weight.screen = make_screen(self, weight)

    def select(self, logits: Array | Scored, tops: Array, room: int) -> Array:
        """(S, vocab) and (S,) -> (S, 1 + 2 * room): of each row the `tops` largest, as select.cu has them."""
        if isinstance(logits, Scored):
            return screened(self, logits, tops, room)
        found = self.device.empty((len(logits), 1 + 2 * room), np.int32)
        self.run("select_largest", len(logits), logits, tops, logits.shape[1], None, None, room, found)
        return found

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
        fused = rows <= FUSED and gemv_shared(rows, columns, group, True) <= SMALL_SHARED
        codes = None if fused else self.quantise(x)
        if rows <= FEW:
            most = rows if fused else few_rows(columns, group)
            for first in range(0, rows, most):
                count = min(most, rows - first)
                for i in range(0, len(weights), TOGETHER):
                    part = slice(i, i + TOGETHER)
                    self._gemv(x, codes, first, count, weights[part], outs[part], residual)
            return outs
        assert codes is not None
        for weight, out in zip(weights, outs, strict=True):
            self._gemm(codes, weight, out, residual)
        return outs

    def quantise(self, x: Prepared) -> tuple[Array, Array, Array]:
        rows, columns = x.shape
        codes = self.device.empty((rows, tiles.count(columns, tiles.COLUMNS) * tiles.COLUMNS), np.int8)
        multipliers, sums = self.device.empty((rows,)), self.device.empty((rows,), np.int32)
        source = (x.x, x.up, x.norm, ACTIVATIONS[x.act], x.eps, columns)
        fits = 4 * columns <= SMALL_SHARED
        scratch, shared = (None, 4 * columns) if fits else (self.device.empty(x.shape), 0)
        self.run("quantise_rows", rows, *source, scratch, codes, multipliers, sums, shared=shared)
        return codes, multipliers, sums

    def _gemv(
        self,
        x: Prepared,
        codes: tuple[Array, Array, Array] | None,
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
        self.run(
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

    def _gemm(self, x: tuple[Array, Array, Array], weight: TernaryMatrix, out: Array, residual: Array | None) -> None:
        codes, multipliers, _ = x
        tokens, rows = out.shape
        along = codes.shape[1] // tiles.COLUMNS
        down, width, splits = gemm_shape(tokens, rows, along, self.device, bool(weight.group))
        share = weight.group // tiles.COLUMNS if weight.group else tiles.count(along, splits)
        splits = 1 if weight.group else tiles.count(along, share)
        parts = self.device.empty((splits, tokens, rows), np.int32) if splits > 1 else None
        kernel = gemm_kernel(down, width, parts is not None, bool(weight.group), residual is not None)
        values = (codes, multipliers, weight.tiles, weight.scales, residual, parts or out, tokens, rows, along, share)
        grid = (tiles.count(rows, down * tiles.ROWS), tiles.count(tokens, width), splits)
        self.device.launch(kernel, grid, [address(value) for value in values])
        if parts is not None:
            blocks = min(tiles.count(tokens * rows, THREADS), 8 * self.device.processors)
            self.run("finish_product", blocks, parts, splits, multipliers, weight.scales, tokens, rows, residual, out)

    def _dense(self, x: Array, weight: DenseMatrix) -> Array:
        rows, columns = weight.shape
        out = self.device.empty((len(x), rows))
        if len(x):
            kernel = dense_kernel(weight.dtype, columns % 16 == 0)
            grid = (tiles.count(len(x), DENSE_TOKENS), tiles.count(rows, DENSE_ROWS), 1)
            values = (x, weight.data, out, len(x), rows, columns, 0, 0)
            self.device.launch(kernel, grid, [address(value) for value in values])
        return out

    def gathered(self, x: Array, weight: DenseMatrix, ids: Array, counts: Array, out: Array) -> None:
        """Of each row of x, up to FEW, its product with rows of the weight of its own."""
        rows, columns = weight.shape
        most = ids.shape[1]
        kernel = dense_kernel(weight.dtype, columns % 16 == 0, most)
        values = (x, weight.data, out, len(x), rows, columns, ids, counts)
        grid = (len(x), tiles.count(most, DENSE_ROWS), 1)
        self.device.launch(kernel, grid, [address(value) for value in values])


def address(value: Any) -> Any:
    if isinstance(value, Array):
        return value.address
    return 0 if value is None else value


def few_rows(columns: int, group: int) -> int:
    """Rows that ternary_gemv takes at once, prepared before: their codes must fit into shared memory."""
    return next((rows for rows in (8, 4, 2) if gemv_shared(rows, columns, group, False) <= SMALL_SHARED), 1)


def gemv_shared(tokens: int, columns: int, group: int, prepares: bool) -> int:
    padded = tiles.count(columns, tiles.COLUMNS) * tiles.COLUMNS
    stride = tiles.count(padded, 128) * 128 + 64
    sums = THREADS // 32 * CELLS * 4 + (4 * tokens * (columns // group) if group else 0)
    return tokens * stride + max(sums, 4 * columns if prepares else 0)


def gemm_shape(tokens: int, rows: int, along: int, device: Device, grouped: bool) -> tuple[int, int, int]:
    """Rows of tiles and tokens of a program, and splits of the columns: enough programs for every processor."""
    processors, most = device.processors, 128 if device.arch >= 90 else 64  # or there are too few registers
    if not grouped and tiles.count(rows, 4 * tiles.ROWS) * tiles.count(tokens, most) >= processors:
        return 4, most, 1
    width = 16 if tokens <= 16 or grouped else 32 if tokens <= 32 else 64
    programs = tiles.count(rows, tiles.ROWS) * tiles.count(tokens, width)
    return 1, width, max(1, min(tiles.count(processors, programs), along // 8))


GEMM_TYPES = ("*i8", "*fp32", "*u8", "*fp32", "*fp32", "*fp32", "i32", "i32", "i32", "i32")


def gemm_kernel(down: int, width: int, split: bool, grouped: bool, residual: bool) -> TritonKernel:
    types = (*GEMM_TYPES[:5], "*i32", *GEMM_TYPES[6:]) if split else GEMM_TYPES
    constants = {
        "DOWN": down,
        "TOKENS": width,
        "SPLIT": split,
        "GROUPED": grouped,
        "RESIDUAL": residual and not split,
    }
    return TritonKernel("ternary_gemm", types, tuple(constants.items()), 8 if down > 1 else 4)


def dense_kernel(dtype: str, even: bool, most: int = 0) -> TritonKernel:
    """even: whether every row begins at a multiple of 16 columns, so that it can be read in runs. most: as `MOST`."""
    types = ("*fp32", POINTERS[dtype], "*fp32", "i32", "i32", "i32:16" if even else "i32", "*i32", "*i32")
    shape = {"ROWS_": DENSE_ROWS, "COLUMNS": 32, "TOKENS": DENSE_TOKENS}
    constants = {**shape, "WIDE": dtype == "F32", "MOST": most}
    return TritonKernel("dense_gemm", types, tuple(constants.items()))


def attention_kernel(dtype: str, group: int, head_dim: int, queries: int, arch: int) -> TritonKernel:
    stored = {"f32": "*fp32", "f16": "*fp16", "int8": "*i8"}[dtype]
    places = ("*fp32", stored, stored, "*fp32", "*fp32", "*i32", "*i32", "*i32")
    size = "i32:16" if head_dim % 16 == 0 else "i32"
    types = (*places, "i32", "i32:16", "i32", "i32", "fp32", "i32", "*fp32", "*fp32", "*fp32", size)
    dim = max(16, 1 << (head_dim - 1).bit_length())
    constants = {
        "GROUP": group,
        "GROUP_": 1 << (group - 1).bit_length(),
        "DIM": dim,
        "WIDTH": WIDTH,
        "STEP": attention_step(dtype, dim, arch),
        "QUERIES": queries,
        "TYPE": dtype,
    }
    return TritonKernel("attention_splits", types, tuple(constants.items()), 4 if arch >= 90 else 8, 2)


def attention_step(dtype: str, dim: int, arch: int) -> int:
    """Positions at once: what of keys, values and queries lies in shared memory must fit."""
    large = arch in (80, 90, 100, 103)  # cards that have at least 163 KiB
    return 64 if large and dim <= 128 and dtype != "f32" else 32 if dim <= 128 else 16
