"""The kernels of many rows, in Triton: products with ternary and with float matrices, and attention.

Plain functions: compiler.py compiles them for a card, the tests run them in Triton's interpreter. Every sum of floats
has one order, whatever rows are computed together; so a row has the same bits in every batch.

The matrix units round what they multiply to 11 bits (TF32). Numbers of more bits go in as two, of 11 bits each: the
products of float16, bfloat16 and int8 with float32 are then good to 22 bits.
"""

# mypy: ignore-errors

import triton.language as tl

ROWS = tl.constexpr(64)  # of a tile of weights, and its columns
LINES = tl.constexpr(16)
SLOTS = tl.constexpr(16)  # positions in a block of the cache
NOTHING = tl.constexpr(-1e30)  # a score that weighs nothing


def ternary_gemm(
    codes,  # int8 (tokens, along * 64)
    multipliers,  # (tokens,)
    tiles,
    scales,  # (rows,), or (rows, groups)
    residual,
    out,  # (tokens, rows); with several splits int32 (splits, tokens, rows), their sums
    tokens,
    rows,
    along,  # tiles in a row of tiles
    share,  # tiles of a split, or of a group
    DOWN: tl.constexpr,  # rows of tiles of a program
    TOKENS: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUPED: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """A tile's line has 4 rows: a product for each bit pair."""
    line = tl.arange(0, DOWN * LINES)
    column = tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    down = tl.program_id(0) * DOWN + line // LINES
    here = (down * ROWS < rows)[:, None]
    weights = tiles + (down.to(tl.int64) * along * (LINES * ROWS) + line % LINES * ROWS)[:, None] + column[None, :]
    x = codes + token[None, :].to(tl.int64) * (along * ROWS) + column[:, None]
    valid = (token < tokens)[None, :]
    split = tl.program_id(2)
    first = split * share if SPLIT else 0
    last = tl.minimum(first + share, along) if SPLIT else along
    n0 = down * ROWS + line % LINES
    multiplier = tl.load(multipliers + token, mask=token < tokens, other=1.0)[None, :]
    if GROUPED:
        zeros = tl.zeros((DOWN * LINES, TOKENS), tl.float32)
        total0, total1, total2, total3 = zeros, zeros, zeros, zeros
        groups = along // share
        for group in range(0, groups):
            none = tl.zeros((DOWN * LINES, TOKENS), tl.int32)
            sum0, sum1, sum2, sum3 = none, none, none, none
            for tile in range(group * share, group * share + share):
                packed = tl.load(weights + tile * (LINES * ROWS), mask=here, other=0x55)
                of_x = tl.load(x + tile * ROWS, mask=valid, other=0)
                sum0 = tl.dot((packed & 3).to(tl.int8) - 1, of_x, sum0, out_dtype=tl.int32)
                sum1 = tl.dot((packed >> 2 & 3).to(tl.int8) - 1, of_x, sum1, out_dtype=tl.int32)
                sum2 = tl.dot((packed >> 4 & 3).to(tl.int8) - 1, of_x, sum2, out_dtype=tl.int32)
                sum3 = tl.dot((packed >> 6 & 3).to(tl.int8) - 1, of_x, sum3, out_dtype=tl.int32)
            for field in tl.static_range(4):
                n = n0 + field * LINES
                scale = tl.load(scales + n.to(tl.int64) * groups + group, mask=n < rows, other=0.0)[:, None]
                if field == 0:
                    total0 += sum0.to(tl.float32) * scale
                elif field == 1:
                    total1 += sum1.to(tl.float32) * scale
                elif field == 2:
                    total2 += sum2.to(tl.float32) * scale
                else:
                    total3 += sum3.to(tl.float32) * scale
    else:
        none = tl.zeros((DOWN * LINES, TOKENS), tl.int32)
        sum0, sum1, sum2, sum3 = none, none, none, none
        for tile in range(first, last):
            packed = tl.load(weights + tile * (LINES * ROWS), mask=here, other=0x55)
            of_x = tl.load(x + tile * ROWS, mask=valid, other=0)
            sum0 = tl.dot((packed & 3).to(tl.int8) - 1, of_x, sum0, out_dtype=tl.int32)
            sum1 = tl.dot((packed >> 2 & 3).to(tl.int8) - 1, of_x, sum1, out_dtype=tl.int32)
            sum2 = tl.dot((packed >> 4 & 3).to(tl.int8) - 1, of_x, sum2, out_dtype=tl.int32)
            sum3 = tl.dot((packed >> 6 & 3).to(tl.int8) - 1, of_x, sum3, out_dtype=tl.int32)
    for field in tl.static_range(4):
        n = n0 + field * LINES
        kept = valid & (n < rows)[:, None]
        at = token[None, :].to(tl.int64) * rows + n[:, None]
        if GROUPED:
            total = total0 if field == 0 else (total1 if field == 1 else (total2 if field == 2 else total3))
            y = tl.math.div_rn(total, tl.broadcast_to(multiplier, (DOWN * LINES, TOKENS)))
        else:
            sums = sum0 if field == 0 else (sum1 if field == 1 else (sum2 if field == 2 else sum3))
            if SPLIT:
                tl.store(out + split.to(tl.int64) * tokens * rows + at, sums, mask=kept)
            scale = tl.load(scales + n, mask=n < rows, other=0.0)[:, None]
            wide = tl.broadcast_to(scale, (DOWN * LINES, TOKENS))
            y = sums.to(tl.float32) * tl.math.div_rn(wide, tl.broadcast_to(multiplier, (DOWN * LINES, TOKENS)))
        if not SPLIT:
            if RESIDUAL:
                y = tl.load(residual + at, mask=kept, other=0.0) + y
            tl.store(out + at, y, mask=kept)


def dense_gemm(
    x,  # (tokens, columns)
    weights,  # (rows, columns), of any float type
    out,  # (tokens, rows)
    tokens,
    rows,
    columns,
    ids,  # (tokens, MOST): the rows of each token's own, where they are gathered; out is (tokens, MOST) then
    counts,  # (tokens,)
    ROWS_: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDE: tl.constexpr,  # whether weights have more than 11 bits
    MOST: tl.constexpr,  # 0: all rows
):
    """Gathered: a program computes its rows for all tokens and keeps one's, so logits have the whole head's bits."""
    n = tl.program_id(1) * ROWS_ + tl.arange(0, ROWS_)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    if MOST:
        mine = tl.program_id(0)
        token = tl.arange(0, TOKENS)
        place = n
        count = tl.load(counts + mine)
        if (count > MOST) | (tl.program_id(1) * ROWS_ >= count):
            return
        n = tl.load(ids + mine * MOST + place, mask=place < count, other=rows)
    of_row = weights + n[:, None].to(tl.int64) * columns
    of_token = x + token[None, :].to(tl.int64) * columns
    total = tl.zeros((ROWS_, TOKENS), tl.float32)
    for first in range(0, columns, COLUMNS):
        c = first + tl.arange(0, COLUMNS)
        w = tl.load(of_row + c[None, :], mask=(n < rows)[:, None] & (c < columns)[None, :], other=0.0).to(tl.float32)
        a = tl.load(of_token + c[:, None], mask=(token < tokens)[None, :] & (c < columns)[:, None], other=0.0)
        high = (a.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        low = a - high
        if WIDE:
            w_high = (w.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            total = tl.dot(w - w_high, high, total, input_precision="tf32")
            total = tl.dot(w_high, low, total, input_precision="tf32")
            total = tl.dot(w_high, high, total, input_precision="tf32")
        else:
            total = tl.dot(w, low, total, input_precision="tf32")
            total = tl.dot(w, high, total, input_precision="tf32")
    if MOST:
        kept = tl.sum(tl.where((token == mine)[None, :], total, 0.0), 1)
        tl.store(out + mine * MOST + place, kept, mask=place < count)
    else:
        at = token[None, :].to(tl.int64) * rows + n[:, None]
        tl.store(out + at, total, mask=(token < tokens)[None, :] & (n < rows)[:, None])


def attention_splits(
    q,  # (tokens, heads * head_dim)
    keys,  # of a layer: (kv_heads, slots, head_dim)
    values,
    key_scales,  # (kv_heads, slots), where they are int8
    value_scales,
    queries,  # (programs, 3): a sequence, its first row here, and how many rows
    positions,
    tables,  # (sequences, blocks)
    blocks,
    slots,
    heads,
    splits,
    scale,
    window,
    parts,  # (tokens, heads, splits, head_dim)
    largest,  # (tokens, heads, splits)
    weights,
    head_dim,
    GROUP: tl.constexpr,  # heads that share keys and values
    GROUP_: tl.constexpr,  # that, rounded up to a power of two
    DIM: tl.constexpr,  # head_dim, likewise
    WIDTH: tl.constexpr,  # positions of a split
    STEP: tl.constexpr,  # that are worked on at once
    QUERIES: tl.constexpr,  # rows and heads of a program
    TYPE: tl.constexpr,  # "f32", "f16", "int8"
):
    """Softmax of a row's scores with the positions of one split, not yet divided by the sum of the weights."""
    program = tl.program_id(0)
    sequence = tl.load(queries + program * 3)
    first = tl.load(queries + program * 3 + 1)
    count = tl.load(queries + program * 3 + 2)
    kv = tl.program_id(1)
    split = tl.program_id(2)
    lowest = tl.load(positions + first)
    highest = tl.load(positions + first + count - 1, mask=count > 0, other=-1)
    start = split * WIDTH
    seen = (window == 0) | (start + WIDTH > lowest - window + 1)
    if (start <= highest) & seen:
        i = tl.arange(0, QUERIES)
        valid = (i // GROUP_ < count) & (i % GROUP_ < GROUP)
        row = (first + i // GROUP_).to(tl.int64)
        head = kv * GROUP + i % GROUP_
        position = tl.load(positions + row, mask=valid, other=-1)
        d = tl.arange(0, DIM)
        real = d < head_dim
        at = (row * heads + head)[:, None] * head_dim + d[None, :]
        query = tl.load(q + at, mask=valid[:, None] & real[None, :], other=0.0)
        q_high = (query.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
        q_low = query - q_high
        most = tl.full((QUERIES,), NOTHING, tl.float32)
        sum = tl.zeros((QUERIES,), tl.float32)
        total = tl.zeros((QUERIES, DIM), tl.float32)
        for begin in range(start, start + WIDTH, STEP):
            p = begin + tl.arange(0, STEP)
            there = p <= highest
            block = tl.load(tables + sequence * blocks + p // SLOTS, mask=there, other=0)
            slot = kv.to(tl.int64) * slots + block * SLOTS + p % SLOTS
            both = there[:, None] & real[None, :]
            key = tl.load(keys + slot[:, None] * head_dim + d[None, :], mask=both, other=0).to(tl.float32)
            key = tl.trans(key)
            score = tl.zeros((QUERIES, STEP), tl.float32)
            if TYPE == "f32":
                key_high = (key.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
                score = tl.dot(q_high, key - key_high, score, input_precision="tf32")
                score = tl.dot(q_low, key_high, score, input_precision="tf32")
                score = tl.dot(q_high, key_high, score, input_precision="tf32")
            else:
                score = tl.dot(q_low, key, score, input_precision="tf32")
                score = tl.dot(q_high, key, score, input_precision="tf32")
            if TYPE == "int8":
                score = score * tl.load(key_scales + slot, mask=there, other=0.0)[None, :]
            score = score * scale
            look = (p[None, :] <= position[:, None]) & ((window == 0) | (p[None, :] > position[:, None] - window))
            score = tl.where(look, score, NOTHING)
            before = most
            most = tl.maximum(most, tl.max(score, 1))  # which passes NaN by: its weight is NaN all the same
            weight = tl.where(look, tl.exp(score - most[:, None]), 0.0)
            shrink = tl.exp(before - most)
            sum = sum * shrink + tl.sum(weight, 1)
            total = total * shrink[:, None]
            value = tl.load(values + slot[:, None] * head_dim + d[None, :], mask=both, other=0).to(tl.float32)
            if TYPE != "int8":
                # What is no finite number must not reach the rows before it as 0 * NaN: the product goes without it,
                # and the rows that see it are told.
                nothing = value - value  # 0, or NaN
                value = tl.where(nothing == 0.0, value, 0.0)
                sum += tl.sum(tl.where(look, tl.sum(nothing, 1)[None, :], 0.0), 1)
            if TYPE == "int8":
                value_scale = tl.load(value_scales + slot, mask=there, other=0.0)[None, :]
                weight = tl.where(look, weight * value_scale, 0.0)
            high = (weight.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            if TYPE == "f32":
                value_high = (value.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
                total = tl.dot(high, value - value_high, total, input_precision="tf32")
                total = tl.dot(weight - high, value_high, total, input_precision="tf32")
                total = tl.dot(high, value_high, total, input_precision="tf32")
            else:
                total = tl.dot(weight - high, value, total, input_precision="tf32")
                total = tl.dot(high, value, total, input_precision="tf32")
        of_split = (row * heads + head) * splits + split
        tl.store(largest + of_split, most, mask=valid)
        tl.store(weights + of_split, sum, mask=valid)
        tl.store(parts + of_split[:, None] * head_dim + d[None, :], total, mask=valid[:, None] & real[None, :])
