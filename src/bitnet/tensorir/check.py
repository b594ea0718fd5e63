"""What a compiled step asks of its arguments before it touches the cache."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from bitnet.tensorir.attention import PAGE
from bitnet.tensorir.function import Buffer, Expr, Size, i64


def check_step(
    vocabulary: int,
    limit: int,
    ids: Buffer,
    positions: Buffer,
    sequences: Buffer,
    want: Buffer,
    top: Buffer,
    tables: Buffer,
    cache: Buffer,
) -> None:
    """ValueError where a number is outside of what it counts. limit: of positions."""
    tokens, rows = ids.shape[0], tables.shape[0]
    with T.serial(i64(0), tokens) as t:
        within("ids", ids[t], vocabulary)
        within("positions", positions[t], limit)
        within("sequences", sequences[t], T.cast(rows, "int32"))
        expect(sequences[T.max(t - 1, i64(0))] <= sequences[t], "sequences do not ascend.")
        last = T.Bind(T.floordiv(T.cast(positions[t], "int64"), i64(PAGE)))
        expect(last < tables.shape[1], "tables has no cache block for a position.")
        with T.serial(i64(0), last + 1) as block:
            within("tables", tables[T.cast(sequences[t], "int64"), block], T.cast(cache.shape[0], "int32"))
    with T.serial(i64(0), want.shape[0]) as s:
        within("want", want[s], T.cast(tokens, "int32"))


def within(name: str, number: Expr, limit: Size) -> None:
    message = f"{name} holds a number that is out of range."
    expect(number >= 0, message)
    expect(number < limit, message)


def expect(condition: Expr, message: str) -> None:
    with T.Assert(condition, message, "ValueError"):
        pass
