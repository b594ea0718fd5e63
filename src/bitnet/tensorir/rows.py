"""Operations that treat every token by itself. T tokens where `count` is None, else as many as it says."""

from __future__ import annotations

from math import prod

from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from bitnet.tensorir.function import LANES, Expr, Function, f32, i64

COUNT = int | None


def quantize(width: int, padded: int, group: int, count: COUNT, gpu: bool = False) -> PrimFunc:
    """x (T, width) -> int8 codes (T, padded), their sums over each `group` columns (T, padded / group), and the
    multiplier of each row (T,): code = round_half_even(x * s), s = 127 / max(max|x|, 1e-5)."""
    with Function("quantize", gpu) as f:
        tokens = f.size("t", count)
        x = f.tensor("x", (tokens, width))
        codes = f.tensor("codes", (tokens, padded), "int8")
        sums = f.tensor("sums", (tokens, padded // group), "int32")
        multipliers = f.tensor("multipliers", (tokens,))
        with f.each(tokens) as t:
            top, scale, total = f.local(LANES), f.local(1), f.local(1, "int32")
            f.fill(top, f32(0.0))
            with f.vectors(width) as row:
                row.for_each(lambda i, lane: f.store(top, f.larger(T.fabs(x[t, i]), top[lane]), lane))
            f.store(scale, f.fold(top, larger=True), 0)
            f.store(scale, f32(127.0) / T.Select(scale[0] > f32(1e-5), scale[0], f32(1e-5)), 0)
            f.store(multipliers, scale[0], t)

            def code(i: Expr) -> Expr:
                value = f.larger(f.smaller(f.mul(x[t, i], scale[0]), f32(127.0)), f32(-128.0))
                return T.cast(T.nearbyint(value), "int8")

            with f.vectors(width) as row:
                row.for_each(lambda i, lane: f.store(codes, code(i), t, i))
            if padded > width:
                with f.serial(padded, width) as i:
                    f.store(codes, T.int8(0), t, i)
            with f.serial(padded // group) as g:
                f.store(total, T.int32(0), 0)
                with f.serial(group) as i:
                    f.store(total, total[0] + T.cast(codes[t, g * group + i], "int32"), 0)
                f.store(sums, total[0], t, g)
    return f.result


def rms_norm(width: int, d: int, eps: float, count: COUNT, gpu: bool = False) -> PrimFunc:
    """x (T, width) and weight (d,) -> x / sqrt(mean(x^2) + eps) * weight, each run of d columns by itself."""
    with Function("rms_norm", gpu) as f:
        tokens = f.size("t", count)
        x, weight, y = f.tensor("x", (tokens, width)), f.tensor("weight", (d,)), f.tensor("y", (tokens, width))
        with f.each(tokens) as t, f.serial(width // d) as run:
            squares, inverse, start = f.local(LANES), f.local(1), run * d
            f.fill(squares, f32(0.0))
            with f.vectors(d) as row:
                row.for_each(
                    lambda i, lane: f.store(squares, squares[lane] + f.mul(x[t, start + i], x[t, start + i]), lane)
                )
            f.store(inverse, f32(1.0) / T.sqrt(f.fold(squares) / f32(d) + f32(eps)), 0)
            with f.vectors(d) as row:
                row.for_each(
                    lambda i, lane: f.store(y, f.mul(f.mul(x[t, start + i], inverse[0]), weight[i]), t, start + i)
                )
    return f.result


def rope(width: int, head_dim: int, rotary: int, interleaved: bool, count: COUNT, gpu: bool = False) -> PrimFunc:
    """x (T, heads * head_dim), their positions (T,), cos and sin (positions, rotary / 2) -> x turned, head by head."""
    half = rotary // 2
    with Function("rope", gpu) as f:
        tokens = f.size("t", count)
        x, at = f.tensor("x", (tokens, width)), f.tensor("at", (tokens,), "int32")
        positions = f.size("positions")
        cos, sin = f.tensor("cos", (positions, half)), f.tensor("sin", (positions, half))
        y = f.tensor("y", (tokens, width))

        def turn(i: Expr, start: Expr, t: Expr) -> None:
            first = start + (2 * i if interleaved else i)
            second = first + (1 if interleaved else half)
            place = T.cast(at[t], "int64")
            a, b, c, s = x[t, first], x[t, second], cos[place, i], sin[place, i]
            f.store(y, f.mul(a, c) - f.mul(b, s), t, first)
            f.store(y, f.mul(b, c) + f.mul(a, s), t, second)

        with f.each(tokens) as t, f.serial(width // head_dim) as head:
            start = head * head_dim
            if interleaved:
                with f.serial(half) as i:
                    turn(i, start, t)
            else:
                with f.vectors(half) as row:
                    row.for_each(lambda i, lane: turn(i, start, t))
            if rotary < head_dim:
                with f.serial(head_dim, rotary) as i:
                    f.store(y, x[t, start + i], t, start + i)
    return f.result


def gate(width: int, act: str, count: COUNT, gpu: bool = False) -> PrimFunc:
    """g, u (T, width) -> act(g) * u; act is "silu", "relu2" or "gelu"."""
    with Function("gate", gpu) as f:
        tokens = f.size("t", count)
        g, u, y = (f.tensor(name, (tokens, width)) for name in "guy")

        def activated(x: Expr) -> Expr:
            if act == "relu2":
                positive = f.larger(x, f32(0.0))
                return f.mul(positive, positive)
            z = x
            if act == "gelu":
                cube = f.mul(f.mul(x, x), x)
                z = f.mul(f32(1.5957691216057308), x + f.mul(f32(0.044715), cube))
            return x / (f32(1.0) + f.exp(f32(0.0) - z))

        with f.each(tokens) as t, f.vectors(width) as row:
            row.for_each(lambda i, lane: f.store(y, f.mul(activated(g[t, i]), u[t, i]), t, i))
    return f.result


def add(width: int, count: COUNT, gpu: bool = False) -> PrimFunc:
    with Function("add", gpu) as f:
        tokens = f.size("t", count)
        a, b, y = (f.tensor(name, (tokens, width)) for name in "aby")
        with f.each(tokens) as t, f.vectors(width) as row:
            row.for_each(lambda i, lane: f.store(y, a[t, i] + b[t, i], t, i))
    return f.result


def scale(width: int, c: float, count: COUNT, gpu: bool = False) -> PrimFunc:
    with Function("scale", gpu) as f:
        tokens = f.size("t", count)
        x, y = (f.tensor(name, (tokens, width)) for name in "xy")
        with f.each(tokens) as t, f.vectors(width) as row:
            row.for_each(lambda i, lane: f.store(y, f.mul(x[t, i], f32(c)), t, i))
    return f.result


def take(width: int, count: COUNT, gpu: bool = False) -> PrimFunc:
    """x (T, width) and rows (S,) -> (S, width), as many as `count` says, of any number."""
    with Function("take", gpu) as f:
        tokens, s = f.size("t"), f.size("s", count)
        x, rows = f.tensor("x", (tokens, width)), f.tensor("rows", (s,), "int32")
        y = f.tensor("y", (s, width))
        with f.each(s) as i, f.vectors(width) as row:
            row.for_each(lambda k, lane: f.store(y, x[T.cast(rows[i], "int64"), k], i, k))
    return f.result


def hadamard(width: int, block: int, inverse: bool, count: COUNT, gpu: bool = False) -> PrimFunc:
    """x (T, width) and signs (width,) -> H(signs * x) in blocks, normalised; inverse: signs * H(x)."""
    norm = float(1.0 / block**0.5)
    with Function("hadamard", gpu) as f:
        tokens = f.size("t", count)
        x, signs, y = f.tensor("x", (tokens, width)), f.tensor("signs", (width,)), f.tensor("y", (tokens, width))
        with f.each(tokens) as t:
            with f.vectors(width) as row:
                row.for_each(lambda i, lane: f.store(y, x[t, i] if inverse else f.mul(x[t, i], signs[i]), t, i))
            pair = f.local(2)
            half = 1
            while half < block:
                with f.serial(width // (2 * half)) as base, f.serial(half) as i:
                    first = base * (2 * half) + i
                    f.store(pair, y[t, first], 0)
                    f.store(pair, y[t, first + half], 1)
                    f.store(y, pair[0] + pair[1], t, first)
                    f.store(y, pair[0] - pair[1], t, first + half)
                half *= 2
            with f.vectors(width) as row:
                row.for_each(
                    lambda i, lane: f.store(
                        y,
                        f.mul(f.mul(y[t, i], f32(norm)), signs[i]) if inverse else f.mul(y[t, i], f32(norm)),
                        t,
                        i,
                    )
                )
    return f.result


def zeros(shape: tuple[int, ...], dtype: str, count: COUNT, gpu: bool = False) -> PrimFunc:
    """-> zeros (T, *shape)."""
    with Function("zeros", gpu) as f:
        n = f.size("n", count)
        y = f.tensor("y", (n, *shape), dtype)
        size = prod(shape)
        flat = T.decl_buffer([n, i64(size)], dtype, data=y.data)
        with f.each(n) as i, f.serial(size) as k:
            f.store(flat, T.cast(f32(0.0), dtype), i, k)
    return f.result
