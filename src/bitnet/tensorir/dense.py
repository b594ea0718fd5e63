"""Products with float matrices, and rows of them."""

from __future__ import annotations

from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from bitnet.tensorir.function import LANES, Buffer, Expr, Function
from bitnet.tensorir.rows import COUNT

TYPES = {"F32": "float32", "F16": "float16", "BF16": "uint16"}  # as TensorIR keeps them: bf16 by its bits
TILE_ROWS = 4  # that share a pass over a token's floats
CHUNK_ROWS = 64  # of a parallel piece of work


def as_float(value: Expr, dtype: str) -> Expr:
    if dtype == "BF16":
        return T.reinterpret("float32", T.shift_left(T.cast(value, "uint32"), T.uint32(16)))
    return value if dtype == "F32" else T.cast(value, "float32")


def embed(n: int, k: int, dtype: str, count: COUNT, gpu: bool = False) -> PrimFunc:
    """ids (T,) and table (n, k) -> (T, k)."""
    with Function("embed", gpu) as f:
        tokens = f.size("t", count)
        ids, table = f.tensor("ids", (tokens,), "int32"), f.tensor("table", (n, k), TYPES[dtype])
        y = f.tensor("y", (tokens, k))
        with f.each(tokens) as t, f.vectors(k) as row:
            row.for_each(lambda i, lane: f.store(y, as_float(table[T.cast(ids[t], "int64"), i], dtype), t, i))
    return f.result


def linear(n: int, k: int, dtype: str, count: COUNT, gpu: bool = False) -> PrimFunc:
    """x (T, k) times w (n, k) -> (T, n): lane l sums columns l, l + 16, ... in ascending order, then lanes fold."""
    with Function("dense", gpu) as f:
        tokens = f.size("t", count)
        x, w = f.tensor("x", (tokens, k)), f.tensor("w", (n, k), TYPES[dtype])
        y = f.tensor("y", (tokens, n))

        def tile(first: Expr, rows: int, t: Expr) -> None:
            sums = [f.local(LANES) for _ in range(rows)]
            for each in sums:
                f.fill(each, T.float32(0.0))

            def accumulate(i: Expr, lane: Expr) -> None:
                for r, each in enumerate(sums):
                    product = f.mul(as_float(w[first + r, i], dtype), x[t, i])
                    f.store(each, each[lane] + product, lane)

            with f.vectors(k) as row:
                row.for_each(accumulate)
            for r, each in enumerate(sums):
                f.store(y, f.fold(each), t, first + r)

        whole, rest = n // TILE_ROWS, n % TILE_ROWS
        per_chunk = CHUNK_ROWS // TILE_ROWS
        if whole:
            with f.each(-(-whole // per_chunk)) as chunk, f.serial(per_chunk) as i:
                index = chunk * per_chunk + i
                with f.when(index < whole), f.serial(tokens) as t:
                    tile(index * TILE_ROWS, TILE_ROWS, t)
        if rest:
            with f.each(1), f.serial(tokens) as t:
                tile(T.int64(whole * TILE_ROWS), rest, t)
    return f.result


__all__ = ["Buffer", "embed", "linear"]
