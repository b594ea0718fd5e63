"""Exact products of int8 activations and packed ternary weights, for each instruction set.

Weights lie as the C++ core's T2 has them (core/kernels/kernels.h): 16 rows are a row group, 16 columns of it a block of
64 bytes, and byte 4r + j of a block holds columns j, 4 + j, 8 + j, 12 + j of row r in its bit pairs, as w + 1. So a
group of four activations is broadcast to all rows, and sum((w + 1) x) - sum(x) is the product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

from bitnet.tensorir.function import LANES, Buffer, Expr, Function, Size, f32, i64
from bitnet.tensorir.rows import COUNT

ROWS = 16  # of a row group
COLUMNS = 16  # of a block
BYTES = 64  # of a block
FIELDS = 4  # of a byte


@dataclass(frozen=True, slots=True)
class Shape:
    """n outputs, k inputs. group: columns that share a scale, 0: all of a row. per_row: a scale for each row."""

    n: int
    k: int
    group: int = 0
    per_row: bool = False

    @property
    def row_groups(self) -> int:
        return -(-self.n // ROWS)

    @property
    def blocks(self) -> int:
        return -(-self.k // COLUMNS)

    @property
    def padded(self) -> int:
        return self.blocks * COLUMNS

    @property
    def groups(self) -> int:
        return self.k // self.group if self.group else 1

    @property
    def scales(self) -> tuple[int, ...]:
        """The shape of the scales as kernels read them."""
        if self.group:
            return (self.row_groups, self.groups, ROWS)
        return (self.row_groups * ROWS,) if self.per_row else (1,)


@dataclass(frozen=True, slots=True)
class Blocking:
    """What a search may choose; none of it changes a result.

    groups: row groups that are computed at once. tokens: that share a pass over them. unroll: blocks written out one
    after the other. ahead: bytes that weights are fetched early, 0: never. chunk: row groups of a parallel piece.
    """

    groups: int = 1
    tokens: int = 1
    unroll: int = 2
    ahead: int = 1024
    chunk: int = 8

    def fitted(self, shape: Shape, count: COUNT) -> Blocking:
        """Not more at once than there is."""
        tokens = self.tokens if count is None else min(self.tokens, count)
        return replace(self, groups=min(self.groups, shape.row_groups), tokens=tokens)


class Schedule(ABC):
    """How one instruction set adds up a block. `clear`, then `step` for every block, then `finish`."""

    def __init__(self, f: Function, weights: Buffer, codes: Buffer, blocking: Blocking) -> None:
        self.f, self.blocking = f, blocking
        rows, size = weights.shape
        self.bytes = weights
        self.words = T.decl_buffer([rows, T.floordiv(size, i64(4))], "uint32", data=weights.data)
        tokens, padded = codes.shape
        self.activations = T.decl_buffer([tokens, T.floordiv(padded, i64(4))], "int32", data=codes.data)
        self.pairs = [(g, m) for g in range(blocking.groups) for m in range(blocking.tokens)]

    @abstractmethod
    def clear(self) -> None: ...

    @abstractmethod
    def step(self, group: Expr, block: Expr, tokens: list[Expr]) -> None:
        """Add block `block` of the row groups from `group` on, for the tokens."""

    @abstractmethod
    def finish(self, g: int, m: int, out: Buffer) -> None:
        """The 16 sums of row group g and token m into `out`."""

    def run(self, group: Expr, first: Expr, count: Size, tokens: list[Expr]) -> None:
        """`count` blocks from `first` on."""
        unroll = min(self.blocking.unroll, count) if isinstance(count, int) else 1
        rounds = count // unroll if isinstance(count, int) else count
        with self.f.serial(rounds) as i:
            for u in range(unroll):
                self.prefetch(group, first + i * unroll + u)
                self.step(group, first + i * unroll + u, tokens)
        if isinstance(count, int):
            for u in range(rounds * unroll, count):
                self.step(group, first + u, tokens)

    def prefetch(self, group: Expr, block: Expr) -> None:
        if self.blocking.ahead:
            for g in range(self.blocking.groups):
                address = T.address_of(self.bytes[group + g, block * BYTES + self.blocking.ahead])
                hint = (T.int32(0), T.int32(3), T.int32(1))  # to read, all caches, data
                T.evaluate(T.call_llvm_intrin(intrinsic("llvm.prefetch.p0"), address, *hint, dtype="void"))

    def four(self, token: Expr, block: Expr, field: int, lanes: int) -> Expr:
        """Four activations, in all of `lanes` groups of four bytes."""
        return T.reinterpret(f"int8x{4 * lanes}", T.broadcast(self.activations[token, block * FIELDS + field], lanes))


def intrinsic(name: str) -> Expr:
    return T.llvm_lookup_intrinsic_id(name)


def vector(start: Size, lanes: int) -> Expr:
    return T.ramp(i64(start), i64(1), lanes)


def zero(buffers: Iterable[Buffer]) -> None:
    """Each as one vector."""
    for buffer in buffers:
        (lanes,) = map(int, buffer.shape)
        T.buffer_store(buffer, T.broadcast(getattr(T, str(buffer.dtype))(0), lanes), [vector(0, lanes)])


class Avx512Vnni(Schedule):
    """One token: fields are masked where they are, 4^f too large, each with sums of its own that are shifted at the
    end. Several tokens: fields are shifted down once for all of them."""

    def __init__(self, f: Function, weights: Buffer, codes: Buffer, blocking: Blocking) -> None:
        super().__init__(f, weights, codes, blocking)
        self.fields = FIELDS if len(self.pairs) * FIELDS <= 16 else 1
        self.sums = {pair: f.local(self.fields * ROWS, "int32") for pair in self.pairs}

    def clear(self) -> None:
        for sums in self.sums.values():
            for field in range(self.fields):
                T.buffer_store(sums, T.broadcast(T.int32(0), ROWS), [vector(field * ROWS, ROWS)])

    def step(self, group: Expr, block: Expr, tokens: list[Expr]) -> None:
        for g in range(self.blocking.groups):
            word = T.Bind(self.words[group + g, vector(block * ROWS, ROWS)])
            for field in range(FIELDS):
                masked = T.Bind(self.masked(word, field))
                for m, token in enumerate(tokens):
                    sums, at = self.sums[g, m], vector(field * ROWS if self.fields > 1 else 0, ROWS)
                    x = self.four(token, block, field, ROWS)
                    dot = intrinsic("llvm.x86.avx512.vpdpbusd.512")
                    T.buffer_store(sums, T.call_llvm_pure_intrin(dot, sums[at], masked, x, dtype="int32x16"), [at])

    def masked(self, word: Expr, field: int) -> Expr:
        if self.fields > 1:
            kept = T.bitwise_and(word, T.broadcast(T.uint32(0x03030303 << 2 * field), ROWS))
        else:
            shifted = T.shift_right(word, T.broadcast(T.uint32(2 * field), ROWS)) if field else word
            kept = T.bitwise_and(shifted, T.broadcast(T.uint32(0x03030303), ROWS))
        return T.reinterpret("uint8x64", kept)

    def finish(self, g: int, m: int, out: Buffer) -> None:
        sums = self.sums[g, m]
        total = sums[vector(0, ROWS)]
        for field in range(1, self.fields):
            shift = T.broadcast(T.int32(2 * field), ROWS)
            total = total + T.shift_right(sums[vector(field * ROWS, ROWS)], shift)
        T.buffer_store(out, total, [vector(0, ROWS)])


class Widened(Schedule):
    """Products add up in `short`, vectors of 16 bits, for RUN blocks at most; then they are widened into `sums`."""

    RUN: int
    sums: dict[tuple[int, ...], Buffer]
    short: list[Buffer]

    def clear(self) -> None:
        zero(self.sums.values())

    def run(self, group: Expr, first: Expr, count: Size, tokens: list[Expr]) -> None:
        assert isinstance(count, int)
        whole, rest = divmod(count, self.RUN)
        if whole:
            with self.f.serial(whole) as i:
                self.widened(group, first + i * self.RUN, self.RUN, tokens)
        if rest:
            self.widened(group, first + whole * self.RUN, rest, tokens)

    def widened(self, group: Expr, first: Expr, count: int, tokens: list[Expr]) -> None:
        zero(self.short)
        super().run(group, first, count, tokens)
        self.widen()

    @abstractmethod
    def widen(self) -> None:
        """Add what is in `short` to `sums`."""


class Avx2(Widened):
    """maddubs adds pairs to 16 bits. Fields 0 and 2 count once, 1 and 3 four times: pairs of a block are at most 1024
    and 4096 in magnitude, so that 8 blocks fit before the pairs are widened."""

    RUN = 8

    def __init__(self, f: Function, weights: Buffer, codes: Buffer, blocking: Blocking) -> None:
        super().__init__(f, weights, codes, blocking)
        keys: list[tuple[int, ...]] = [(*pair, half) for pair in self.pairs for half in range(2)]
        self.sums = {key: f.local(8, "int32") for key in keys}
        self.once = {key: f.local(16, "int16") for key in keys}
        self.fourfold = {key: f.local(16, "int16") for key in keys}
        self.short = [*self.once.values(), *self.fourfold.values()]

    def widen(self) -> None:
        one = T.broadcast(T.int16(1), 16)
        for key, sums in self.sums.items():
            widen = intrinsic("llvm.x86.avx2.pmadd.wd")
            once, fourfold = (
                T.call_llvm_pure_intrin(widen, pairs[key][vector(0, 16)], one, dtype="int32x8")
                for pairs in (self.once, self.fourfold)
            )
            total = sums[vector(0, 8)] + once + T.shift_right(fourfold, T.broadcast(T.int32(2), 8))
            T.buffer_store(sums, total, [vector(0, 8)])

    def step(self, group: Expr, block: Expr, tokens: list[Expr]) -> None:
        add_pairs = intrinsic("llvm.x86.avx2.pmadd.ub.sw")
        for g in range(self.blocking.groups):
            for half in range(2):
                low = T.Bind(self.words[group + g, vector(block * ROWS + half * 8, 8)])
                high = T.Bind(T.shift_right(low, T.broadcast(T.uint32(4), 8)))
                for field in range(FIELDS):
                    mask = T.broadcast(T.uint32(0x0C0C0C0C if field % 2 else 0x03030303), 8)
                    kept = T.Bind(T.reinterpret("uint8x32", T.bitwise_and(high if field > 1 else low, mask)))
                    for m, token in enumerate(tokens):
                        pairs = (self.fourfold if field % 2 else self.once)[g, m, half]
                        x = self.four(token, block, field, 8)
                        both = T.call_llvm_pure_intrin(add_pairs, kept, x, dtype="int16x16")
                        T.buffer_store(pairs, pairs[vector(0, 16)] + both, [vector(0, 16)])

    def finish(self, g: int, m: int, out: Buffer) -> None:
        for half in range(2):
            T.buffer_store(out, self.sums[g, m, half][vector(0, 8)], [vector(8 * half, 8)])


class NeonDotprod(Schedule):
    """sdot on four rows at a time."""

    def __init__(self, f: Function, weights: Buffer, codes: Buffer, blocking: Blocking) -> None:
        super().__init__(f, weights, codes, blocking)
        self.sums = {(*pair, quarter): f.local(4, "int32") for pair in self.pairs for quarter in range(4)}

    def clear(self) -> None:
        zero(self.sums.values())

    def codes_of(self, group: Expr, block: Expr, quarter: int) -> list[Expr]:
        """The four fields of four rows, each int8x16."""
        word = T.Bind(self.bytes[group, vector(block * BYTES + quarter * 16, 16)])
        shifted = [
            T.shift_right(word, T.broadcast(T.uint8(2 * field), 16)) if field else word for field in range(FIELDS)
        ]
        three = T.broadcast(T.uint8(3), 16)
        return [T.Bind(T.reinterpret("int8x16", T.bitwise_and(each, three))) for each in shifted]

    def step(self, group: Expr, block: Expr, tokens: list[Expr]) -> None:
        dot = intrinsic("llvm.aarch64.neon.sdot")
        for g in range(self.blocking.groups):
            for quarter in range(4):
                for field, codes in enumerate(self.codes_of(group + g, block, quarter)):
                    for m, token in enumerate(tokens):
                        sums, x = self.sums[g, m, quarter], self.four(token, block, field, 4)
                        total = T.call_llvm_pure_intrin(dot, sums[vector(0, 4)], codes, x, dtype="int32x4")
                        T.buffer_store(sums, total, [vector(0, 4)])

    def finish(self, g: int, m: int, out: Buffer) -> None:
        for quarter in range(4):
            T.buffer_store(out, self.sums[g, m, quarter][vector(0, 4)], [vector(4 * quarter, 4)])


class Neon(Widened):
    """Without sdot: products of 16 bits, at most 1024 of a block in magnitude, for 16 blocks; then pairs are added."""

    RUN = 16

    def __init__(self, f: Function, weights: Buffer, codes: Buffer, blocking: Blocking) -> None:
        super().__init__(f, weights, codes, blocking)
        keys: list[tuple[int, ...]] = [(*pair, eighth) for pair in self.pairs for eighth in range(8)]  # two rows each
        self.sums = {key: f.local(4, "int32") for key in keys}
        self.products = {key: f.local(8, "int16") for key in keys}
        self.short = [*self.products.values()]

    def widen(self) -> None:
        for key, sums in self.sums.items():
            widen = intrinsic("llvm.aarch64.neon.saddlp")
            pairs = T.call_llvm_pure_intrin(widen, self.products[key][vector(0, 8)], dtype="int32x4")
            T.buffer_store(sums, sums[vector(0, 4)] + pairs, [vector(0, 4)])

    def step(self, group: Expr, block: Expr, tokens: list[Expr]) -> None:
        for g in range(self.blocking.groups):
            for eighth in range(8):
                word = T.Bind(self.bytes[group + g, vector(block * BYTES + eighth * 8, 8)])
                for field in range(FIELDS):
                    shifted = T.shift_right(word, T.broadcast(T.uint8(2 * field), 8)) if field else word
                    codes = T.Bind(T.cast(T.bitwise_and(shifted, T.broadcast(T.uint8(3), 8)), "int16x8"))
                    for m, token in enumerate(tokens):
                        sums, x = self.products[g, m, eighth], T.cast(self.four(token, block, field, 2), "int16x8")
                        T.buffer_store(sums, sums[vector(0, 8)] + codes * x, [vector(0, 8)])

    def finish(self, g: int, m: int, out: Buffer) -> None:
        for eighth in range(8):
            sums = self.sums[g, m, eighth]
            for row in range(2):
                self.f.store(out, sums[2 * row] + sums[2 * row + 1], 2 * eighth + row)


SCHEDULES: dict[str, type[Schedule]] = {
    "avx512_vnni": Avx512Vnni,
    "avx2": Avx2,
    "neon_dotprod": NeonDotprod,
    "neon": Neon,
}
Emit = Callable[[Expr, Expr, Buffer], None]  # (row group, token, its 16 numbers)


def product(shape: Shape, schedule: str, blocking: Blocking, count: COUNT) -> PrimFunc:
    """codes (T, padded), sums (T, 1), weights -> the integers (T, n) alone."""
    whole = Shape(shape.n, shape.k)
    with Function("product") as f:
        tokens = f.size("t", count)
        codes, sums, weights = operands(f, tokens, whole)
        y = f.tensor("y", (tokens, shape.n), "int32")

        def emit(group: Expr, t: Expr, numbers: Buffer) -> None:
            by_row(f, whole, group, lambda row, lane: f.store(y, numbers[lane], t, row))

        make = partial(SCHEDULES[schedule], f, weights, codes, blocking.fitted(whole, count))
        tiles(f, tokens, whole, make, sums, emit, None)
    return f.result


def linear(shape: Shape, schedule: str, blocking: Blocking, count: COUNT) -> PrimFunc:
    """codes (T, padded), sums (T, groups), weights, scales (shape.scales), multipliers (T,) -> y (T, n)."""
    with Function("ternary") as f:
        tokens = f.size("t", count)
        codes, sums, weights = operands(f, tokens, shape)
        scales, multipliers = f.tensor("scales", shape.scales), f.tensor("multipliers", (tokens,))
        y = f.tensor("y", (tokens, shape.n))

        def emit(group: Expr, t: Expr, numbers: Buffer) -> None:
            def one(row: Expr, lane: Expr) -> None:
                if shape.group:
                    value = numbers[lane] / multipliers[t]
                else:
                    scale = scales[row if shape.per_row else i64(0)] / multipliers[t]
                    value = f.mul(T.cast(numbers[lane], "float32"), scale)
                f.store(y, value, t, row)

            by_row(f, shape, group, one)

        make = partial(SCHEDULES[schedule], f, weights, codes, blocking.fitted(shape, count))
        tiles(f, tokens, shape, make, sums, emit, scales)
    return f.result


def linear_dp4a(shape: Shape, count: COUNT, gpu: bool = True) -> PrimFunc:
    """As `linear`, for CUDA: a thread for each row, whose neighbours read neighbouring words."""
    with Function("ternary_dp4a", gpu) as f:
        tokens = f.size("t", count)
        codes, sums, weights = operands(f, tokens, shape)
        scales, multipliers = f.tensor("scales", shape.scales), f.tensor("multipliers", (tokens,))
        y = f.tensor("y", (tokens, shape.n))
        words = T.decl_buffer([i64(shape.row_groups), i64(shape.blocks * ROWS)], "uint32", data=weights.data)
        fours = T.decl_buffer([i64(tokens), i64(shape.blocks * FIELDS)], "int32", data=codes.data)
        group_blocks = shape.group // COLUMNS or shape.blocks
        with f.each(shape.row_groups) as group, T.thread_binding(i64(0), i64(ROWS), "threadIdx.x") as lane:
            row, sum_, total = T.Bind(group * ROWS + lane), f.local(1, "int32"), f.local(1)
            with f.serial(tokens) as t:
                f.store(total, f32(0.0), 0)
                with f.serial(shape.groups) as s:
                    f.store(sum_, T.int32(0), 0)
                    with f.serial(group_blocks) as i:
                        block = T.Bind(s * group_blocks + i)
                        word = T.Bind(words[group, block * ROWS + lane])
                        for field in range(FIELDS):
                            kept = T.bitwise_and(T.shift_right(word, T.uint32(2 * field)), T.uint32(0x03030303))
                            x = fours[t, block * FIELDS + field]
                            dot = T.call_pure_extern("int32", "__dp4a", T.reinterpret("int32", kept), x, sum_[0])
                            f.store(sum_, dot, 0)
                    whole = T.cast(sum_[0] - sums[t, s], "float32")
                    if shape.group:
                        f.store(total, total[0] + f.mul(whole, scales[group, s, lane]), 0)
                    else:
                        scale = scales[row if shape.per_row else i64(0)] / multipliers[t]
                        f.store(total, f.mul(whole, scale), 0)
                with f.when(row < shape.n):
                    f.store(y, total[0] / multipliers[t] if shape.group else total[0], t, row)
    return f.result


def operands(f: Function, tokens: Size, shape: Shape) -> tuple[Buffer, Buffer, Buffer]:
    return (
        f.tensor("codes", (tokens, shape.padded), "int8"),
        f.tensor("sums", (tokens, shape.groups), "int32"),
        f.tensor("weights", (shape.row_groups, shape.blocks * BYTES), "uint8"),
    )


def by_row(f: Function, shape: Shape, group: Expr, body: Callable[[Expr, Expr], None]) -> None:
    """body(row, lane) for the rows of a row group that are there."""
    last, rest = shape.row_groups - 1, shape.n % ROWS
    if not rest:
        with f.lanes() as lane:
            body(group * ROWS + lane, lane)
        return
    with f.when(group < last), f.lanes() as lane:
        body(group * ROWS + lane, lane)
    with f.when(group == last), f.serial(rest) as lane:
        body(group * ROWS + lane, lane)


def tiles(
    f: Function,
    tokens: Size,
    shape: Shape,
    make: partial[Schedule],
    sums: Buffer,
    emit: Emit,
    scales: Buffer | None,
) -> None:
    """All row groups, a few at a time, times all tokens, a few at a time. Every piece of the work has a schedule, and
    with it sums, of its own."""
    blocking: Blocking = make.args[-1]
    step, width = blocking.groups, blocking.tokens
    chunk = max(1, blocking.chunk // step)
    pieces, rounds = -(-shape.row_groups // (chunk * step)), -(-tokens // width) if isinstance(tokens, int) else None
    with f.each(pieces) as piece, f.serial(chunk) as i:
        group = T.Bind((piece * chunk + i) * step)
        with f.when(group < shape.row_groups):
            # The last row groups are computed twice where they do not fill a tile.
            first = T.Bind(T.min(group, i64(max(0, shape.row_groups - step))))
            with f.serial(T.ceildiv(tokens, i64(width)) if rounds is None else rounds) as j:
                places = [T.Bind(T.min(j * width + m, tokens - 1)) for m in range(width)]
                tile(f, shape, make(), sums, scales, first, places, emit)


def tile(
    f: Function,
    shape: Shape,
    schedule: Schedule,
    sums: Buffer,
    scales: Buffer | None,
    first: Expr,
    places: list[Expr],
    emit: Emit,
) -> None:
    """Row groups from `first` on and the tokens `places`; a token may be there twice, which does no harm."""
    numbers = f.local(LANES, "int32")
    if not shape.group:
        schedule.clear()
        schedule.run(first, i64(0), shape.blocks, places)
        for g, m in schedule.pairs:
            schedule.finish(g, m, numbers)
            with f.lanes() as lane:
                f.store(numbers, numbers[lane] - sums[places[m], 0], lane)
            emit(first + g, places[m], numbers)
        return
    assert scales is not None
    totals = {pair: f.local(LANES) for pair in schedule.pairs}
    for total in totals.values():
        f.fill(total, f32(0.0))
    blocks = shape.group // COLUMNS
    with f.serial(shape.groups) as s:
        schedule.clear()
        schedule.run(first, s * blocks, blocks, places)
        for (g, m), total in totals.items():
            schedule.finish(g, m, numbers)
            with f.lanes() as lane:
                whole = T.cast(numbers[lane] - sums[places[m], s], "float32")
                f.store(total, total[lane] + f.mul(whole, scales[first + g, s, lane]), lane)
    for (g, m), total in totals.items():
        emit(first + g, places[m], total)


def embed(shape: Shape, count: COUNT, gpu: bool = False) -> PrimFunc:
    """ids (T,), a packed table and its scales -> its rows (T, k) as floats."""
    with Function("embed_ternary", gpu) as f:
        tokens = f.size("t", count)
        ids = f.tensor("ids", (tokens,), "int32")
        table = f.tensor("table", (shape.row_groups, shape.blocks * BYTES), "uint8")
        scales, y = f.tensor("scales", shape.scales), f.tensor("y", (tokens, shape.k))
        with f.each(tokens) as t:
            row = T.Bind(T.cast(ids[t], "int64"))
            group, r = T.Bind(T.shift_right(row, i64(4))), T.Bind(T.bitwise_and(row, i64(15)))
            with f.serial(shape.k) as i:
                byte = T.shift_right(i, i64(4)) * BYTES + r * 4 + T.bitwise_and(i, i64(3))
                shift = T.cast(T.bitwise_and(T.shift_right(i, i64(2)), i64(3)) * 2, "int32")
                code = T.bitwise_and(T.shift_right(T.cast(table[group, byte], "int32"), shift), T.int32(3)) - 1
                if shape.group:
                    scale = scales[group, T.floordiv(i, i64(shape.group)), r]
                else:
                    scale = scales[row if shape.per_row else i64(0)]
                f.store(y, f.mul(T.cast(code, "float32"), scale), t, i)
    return f.result
