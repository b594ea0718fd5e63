"""Causal attention over the paged cache of keys and values, in the layout and the order of sums of the C++ core.

cache (blocks, layers, 2, kv_heads, 16 * head_dim): a page of keys is [head_dim][16], one of values [16][head_dim]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from bitnet.tensorir.function import LANES, Buffer, Expr, Function, f32, i64
from bitnet.tensorir.rows import COUNT

SEGMENT = 256  # positions; a sequence is cut here, and its parts are folded in ascending order
PAGE = 16  # positions of a page, one in each lane
UNSEEN = float("-inf")
CACHE_TYPES = {"f16": "float16", "f32": "float32"}


@dataclass(frozen=True, slots=True)
class Heads:
    """layers: of the cache. window: positions that a token attends, its own included; 0: all."""

    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    window: int = 0
    kv: str = "f16"

    @property
    def shared(self) -> int:
        """Query heads of a key-value head."""
        return self.heads // self.kv_heads


def cache_shape(blocks: int, layers: int, kv_heads: int, head_dim: int) -> tuple[int, ...]:
    return (blocks, layers, 2, kv_heads, PAGE * head_dim)


def attention(heads: Heads, count: COUNT, gpu: bool = False) -> PrimFunc:
    """q (T, heads * head_dim), k, v (T, kv_heads * head_dim), positions and sequences (T,), tables (B, M),
    layer (1,), cache -> (T, heads * head_dim). Writes k and v of all tokens into the cache first."""
    kv_heads, dim, kv = heads.kv_heads, heads.head_dim, CACHE_TYPES[heads.kv]
    with Function("attention", gpu) as f:
        q, k, v, positions, sequences, tables, layer, cache, y = operands(f, heads, count)
        tokens = count or q.shape[0]

        def page_of(part: int, block: Expr, h: Expr, index: Expr) -> tuple[Expr, ...]:
            return block, T.cast(layer[0], "int64"), i64(part), h, index

        def block_of(t: Expr, position: Expr) -> Expr:
            return T.cast(tables[T.cast(sequences[t], "int64"), T.shift_right(position, i64(4))], "int64")

        with f.each(tokens) as t, f.serial(kv_heads) as h:
            position = T.Bind(T.cast(positions[t], "int64"))
            block, slot = T.Bind(block_of(t, position)), T.bitwise_and(position, i64(PAGE - 1))
            with f.serial(dim) as d:
                f.store(cache, T.cast(k[t, h * dim + d], kv), *page_of(0, block, h, d * PAGE + slot))
            with f.serial(dim) as d:
                f.store(cache, T.cast(v[t, h * dim + d], kv), *page_of(1, block, h, slot * dim + d))

        with f.each(tokens * kv_heads) as index:
            t, h = T.Bind(T.floordiv(index, i64(kv_heads))), T.Bind(T.floormod(index, i64(kv_heads)))

            def cached(part: int, block: Expr, index: Expr) -> Expr:
                return T.cast(cache[page_of(part, block, h, index)], "float32")

            position = T.Bind(T.cast(positions[t], "int64"))
            look(f, heads, q, y, position, t, h, lambda position: block_of(t, position), cached)
    return f.result


def operands(f: Function, heads: Heads, count: COUNT) -> tuple[Buffer, ...]:
    tokens, kv_heads, dim = f.size("t", count), heads.kv_heads, heads.head_dim
    q = f.tensor("q", (tokens, heads.heads * dim))
    k, v = (f.tensor(name, (tokens, kv_heads * dim)) for name in "kv")
    positions, sequences = (f.tensor(name, (tokens,), "int32") for name in ("positions", "sequences"))
    tables, layer = f.tensor("tables", (f.size("b"), f.size("m")), "int32"), f.tensor("layer", (1,), "int32")
    cache = f.tensor("cache", (f.size("blocks"), heads.layers, 2, kv_heads, PAGE * dim), CACHE_TYPES[heads.kv])
    return q, k, v, positions, sequences, tables, layer, cache, f.tensor("y", (tokens, heads.heads * dim))


def look(
    f: Function,
    heads: Heads,
    q: Buffer,
    y: Buffer,
    position: Expr,
    t: Expr,
    h: Expr,
    block_of: Callable[[Expr], Expr],
    cached: Callable[[int, Expr, Expr], Expr],
) -> None:
    """The query heads of token t that share key-value head h, over the segments of its sequence.

    block_of: the block of a position. cached: a float of a block's keys (0) or values (1).
    """
    dim, rows = heads.head_dim, range(heads.shared)
    start = T.Bind(T.max(position - (heads.window - 1), i64(0)) if heads.window else i64(0))
    scores = [f.local(SEGMENT) for _ in rows]
    lanes = [f.local(LANES) for _ in rows]
    state = [f.local(2) for _ in rows]  # max, and sum of exp(score - max)
    part = [f.local(2) for _ in rows]  # of this segment
    factors = [f.local(2) for _ in rows]  # that bring both to the larger maximum
    out = [f.local(dim) for _ in rows]
    for r in rows:
        f.store(state[r], f32(UNSEEN), 0)
        f.store(state[r], f32(0.0), 1)
        with f.vectors(dim) as row:
            row.for_each(lambda d, lane, r=r: f.store(out[r], f32(0.0), d))
    with f.serial(T.shift_right(position, i64(8)) + 1, T.shift_right(start, i64(8))) as segment:
        first = T.Bind(segment * SEGMENT)
        seen, hidden = T.Bind(T.min(position + 1 - first, i64(SEGMENT))), T.Bind(T.max(start - first, i64(0)))
        pages = T.Bind(T.shift_right(seen + (PAGE - 1), i64(4)))
        with f.serial(pages) as p:  # positions are lanes, and each of them sums over head_dim in ascending order
            block = T.Bind(block_of(first + p * PAGE))
            for each in lanes:
                f.fill(each, f32(0.0))
            with f.serial(dim) as d, f.lanes() as lane:
                key = cached(0, block, d * PAGE + lane)
                for r in rows:
                    query = q[t, (h * heads.shared + r) * dim + d]
                    f.store(lanes[r], lanes[r][lane] + f.mul(key, query), lane)
            for r in rows:
                with f.lanes() as lane:
                    at, score = p * PAGE + lane, f.mul(lanes[r][lane], f32(dim**-0.5))
                    f.store(scores[r], T.Select(T.Or(at >= seen, at < hidden), f32(UNSEEN), score), at)
        for r in rows:
            soften(f, scores[r], pages, lanes[r], part[r])
            fold(f, state[r], part[r], factors[r])
        whole, rest = dim // LANES, dim % LANES
        for size, count, base in ((LANES, whole, 0), (rest, min(rest, 1), whole * LANES)):
            if not count:
                continue
            with f.serial(count) as c:
                column = base + c * LANES
                for each in lanes:
                    f.fill(each, f32(0.0), size)
                with f.serial(pages) as p:
                    block = T.Bind(block_of(first + p * PAGE))
                    with f.serial(T.min(seen - p * PAGE, i64(PAGE))) as i, f.lanes(size) as lane:
                        value = cached(1, block, i * dim + column + lane)
                        for r in rows:
                            f.store(lanes[r], lanes[r][lane] + f.mul(scores[r][p * PAGE + i], value), lane)
                for r in rows:
                    with f.lanes(size) as lane:
                        before = f.mul(out[r][column + lane], factors[r][0])
                        f.store(out[r], before + f.mul(lanes[r][lane], factors[r][1]), column + lane)
    for r in rows:
        with f.vectors(dim) as row:
            row.for_each(lambda d, lane, r=r: f.store(y, out[r][d] / state[r][1], t, (h * heads.shared + r) * dim + d))


def soften(f: Function, scores: Buffer, pages: Expr, lanes: Buffer, part: Buffer) -> None:
    """Scores to exp(score - max), in place; part = (max, sum)."""
    with f.lanes() as lane:
        f.store(lanes, scores[lane], lane)
    with f.serial(pages, 1) as p, f.lanes() as lane:
        f.store(lanes, f.larger(lanes[lane], scores[p * PAGE + lane]), lane)
    f.store(part, f.fold(lanes, larger=True), 0)
    f.fill(lanes, f32(0.0))
    with f.serial(pages) as p, f.lanes() as lane:
        at = p * PAGE + lane
        f.store(scores, f.exp(scores[at] - part[0]), at)
        f.store(lanes, lanes[lane] + scores[at], lane)
    f.store(part, f.fold(lanes), 1)


def fold(f: Function, state: Buffer, part: Buffer, factors: Buffer) -> None:
    """Take a later segment's maximum and sum into the running ones."""
    f.store(factors, f.exp(state[0] - f.larger(state[0], part[0])), 0)
    f.store(factors, f.exp(part[0] - f.larger(state[0], part[0])), 1)
    f.store(state, f.larger(state[0], part[0]), 0)
    f.store(state, f.mul(state[1], factors[0]) + f.mul(part[1], factors[1]), 1)
