"""Whether a card computes what the CPU does: every kernel against NumPy, then models' tokens against the C++ core's.

It runs before anything is timed: numbers of kernels that are wrong are worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitnet import backends, formats, models
from bitnet.api import builtin_model
from bitnet.backends.base import BLOCK_SIZE, Rope, Step
from bitnet.backends.cuda import CUDA
from bitnet.backends.cuda.device import Device
from bitnet.backends.cuda.graphs import ROOM, top_logits
from bitnet.backends.cuda.many_rows import TRITON_ARCH
from bitnet.backends.cuda.screen import Scored, screened
from bitnet.engine import SamplingParams
from bitnet.engine.sampling import sample
from bitnet.models import Decoder
from bitnet.models.synthetic import SyntheticCheckpoint
from bitnet.quant.tensor import DenseTensor, TernaryTensor

OK = "as the CPU"
SMALL = {"num_hidden_layers": 2, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 320}
LLAMA = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}
REFERENCE = backends.make("reference")
Test = Callable[[CUDA, "Extent"], Iterator[tuple[str, str]]]  # what was tried, and OK or what is wrong with it


@dataclass(frozen=True)
class Extent:
    """How much is tried. shapes: of ternary products, (outputs, inputs)."""

    shapes: Sequence[tuple[int, int]]
    rows: Sequence[int] = (1, 2, 3, 8, 9, 16, 64, 257)
    positions: int = 700
    vocab: int = 20_000
    built_in: bool = True
    tokens: int = 24


def check(device: Device, extent: Extent, say: Callable[[str], None] = print) -> dict[str, str]:
    """What was tried, and OK or what is wrong with it. Where Triton is used, the kernels of older cards run as well."""
    found: dict[str, str] = {}
    kinds = {"": CUDA(device)}
    if device.arch >= TRITON_ARCH:
        kinds["without Triton: "] = CUDA(device, triton=False)
    for kind, ops in kinds.items():
        for test in TESTS:
            name = kind + test.__name__.replace("_", " ")
            verdicts: dict[str, str] = {}
            try:
                for tried, verdict in test(ops, extent):
                    if verdicts.get(tried, OK).startswith(OK):  # of several rows the first that is wrong
                        verdicts[tried] = verdict
            except Exception as error:
                verdicts[""] = f"{type(error).__name__}: {error}"
            for tried, verdict in verdicts.items():
                found[f"{name} {tried}".rstrip()] = verdict
            wrong = [verdict for verdict in verdicts.values() if not verdict.startswith(OK)]
            say(f"  {name:<40} {f'WRONG: {wrong[0]}' if wrong else f'{len(verdicts)} {OK}'}")
    return found


def wrong_ones(found: dict[str, str]) -> dict[str, str]:
    return {name: verdict for name, verdict in found.items() if not verdict.startswith(OK)}


def equal(ours: Any, expected: Any) -> str:
    wrong = int((np.asarray(ours) != np.asarray(expected)).sum())
    return f"{wrong} of {np.size(expected)} differ" if wrong else OK


def near(ours: Any, expected: Any, allowed: Any) -> str:
    """allowed: difference, of each number or of all."""
    over = np.abs(np.asarray(ours, np.float64) - expected) / np.maximum(allowed, 1e-30)
    worst = float(over.max(initial=0)) if np.isfinite(over).all() else np.inf
    return f"a difference is {worst:.3g} times what rounding explains" if worst > 1 else OK


def floats(random: np.random.Generator, *shape: int) -> Any:
    return random.standard_normal(shape, np.float32)


def poison(device: Device, count: int) -> None:
    """The piece of memory that the next result will probably be given."""
    device.empty((count,)).write(np.full(count, np.nan, np.float32))


def ternary_products(ops: CUDA, extent: Extent) -> Iterator[tuple[str, str]]:
    """Of whole numbers, and so exact."""
    random = np.random.default_rng(0)
    for n, k in extent.shapes:
        codes = random.integers(-1, 2, (n, k), np.int8)
        weight = ops.put(TernaryTensor(codes, np.ones((), np.float32)))
        some = random.choice(n, min(n, 512), replace=False)
        wanted = codes[some].T.astype(np.float64)
        for rows in extent.rows:
            x = random.integers(-127, 128, (rows, k)).astype(np.float32)
            x[:, -1] = 127  # so that every number is its own code
            poison(ops.device, rows * n)
            ours = ops.to_host(ops.linear(ops.device.put(x), weight)[0])
            yield f"{n} x {k}, {rows} rows", equal(ours[:, some], x.astype(np.float64) @ wanted)


def scales_and_residuals(ops: CUDA, extent: Extent) -> Iterator[tuple[str, str]]:
    random = np.random.default_rng(1)
    for scales in ((), (170,), (170, 3), (170, 6)):
        w = TernaryTensor(random.integers(-1, 2, (170, 384), np.int8), random.uniform(0.01, 2, scales).astype("f4"))
        weight = ops.put(w)
        for rows in extent.rows:
            x, y = floats(random, rows, 384), floats(random, rows, 170)
            ours = ops.to_host(ops.add(ops.device.put(y), ops.linear(ops.device.put(x), weight)[0]))
            yield f"{scales}, {rows} rows", equal(ours, y + REFERENCE.linear(x, w)[0])


def float_products(ops: CUDA, extent: Extent) -> Iterator[tuple[str, str]]:
    """Of 22 bits but for their sums, which matrix units cut off; and the same bits whatever rows are beside."""
    random = np.random.default_rng(2)
    values = floats(random, 500, 320)
    kinds = {
        "F32": DenseTensor(values),
        "F16": DenseTensor(values.astype(np.float16), "F16"),
        "BF16": DenseTensor((values.view(np.uint32) >> 16).astype(np.uint16), "BF16"),
    }
    for kind, w in kinds.items():
        weight, x, exact = ops.put(w), floats(random, 40, 320), w.dequantize().astype(np.float64)
        ours = ops.to_host(ops.linear(ops.device.put(x), weight)[0])
        sizes = np.abs(x).astype(np.float64) @ np.abs(exact).T
        yield kind, near(ours, x.astype(np.float64) @ exact.T, 2**-18 * sizes)
        for rows in (1, 7, 33):
            few = ops.to_host(ops.linear(ops.device.put(x[:rows]), weight)[0])
            yield f"{kind}, {rows} of 40 rows", equal(few, ours[:rows])


def rows_of_numbers(ops: CUDA, extent: Extent) -> Iterator[tuple[str, str]]:
    """Norms, gates, rotations and transforms."""
    random = np.random.default_rng(3)
    x, y, norm = floats(random, 7, 512), floats(random, 7, 512), floats(random, 512)
    signs = random.choice(np.array([-1, 1], np.float32), 512)
    ops.new_cache(1, 4, 1, 64, "f32")  # tables of angles reach as far as a cache
    positions, put = np.arange(7, dtype=np.int32) * 9, ops.device.put
    tried: dict[str, tuple[Any, Any]] = {
        "norm": (ops.rms_norm(put(x), put(norm), 1e-6), REFERENCE.rms_norm(x, norm, 1e-6)),
        "norms of heads": (ops.rms_norm(put(x), put(norm[:64]), 1e-6), REFERENCE.rms_norm(x, norm[:64], 1e-6)),
    }
    for act in ("silu", "relu2", "gelu"):
        tried[act] = ops.gate(act, put(x), put(y)), REFERENCE.gate(act, x, y)
    for inverse in (False, True):
        expected = REFERENCE.hadamard(x, signs, 128, inverse)
        tried[f"Hadamard, inverse {inverse}"] = ops.hadamard(put(x), put(signs), 128, inverse), expected
    for style in ("neox", "interleaved"):
        rope = Rope(1e4, 64, style)
        tried[f"rope, {style}"] = ops.rope(put(x), positions, rope), REFERENCE.rope(x, positions, rope)
    for name, (ours, expected) in tried.items():
        yield name, near(ops.to_host(ours), expected, 1e-5 * np.abs(expected) + 4e-6 * np.abs(expected).max())


def attention(ops: CUDA, extent: Extent) -> Iterator[tuple[str, str]]:
    """Of two sequences: read in two parts, the second long, then one token each."""
    random = np.random.default_rng(4)
    heads, kv_heads, head_dim, last = 6, 2, 64, extent.positions
    blocks = -(-last // BLOCK_SIZE)
    tables = random.permutation(2 * blocks).astype(np.int32).reshape(2, blocks)
    for dtype in ("f32", "f16", "int8"):
        for window in (0, 130):
            caches = [each.new_cache(1, 2 * blocks, kv_heads, head_dim, dtype) for each in (ops, REFERENCE)]
            for first, end in ((0, last // 3), (last // 3, last - 1), (last - 1, last)):
                at = np.tile(np.arange(first, end, dtype=np.int32), 2)
                step = Step(at, at, np.array([0, len(at) // 2, len(at)], np.int32), at[:0], tables)
                q = floats(random, len(at), heads * head_dim)
                k, v = (floats(random, len(at), kv_heads * head_dim) for _ in range(2))
                given = [(ops, ops.device.put, caches[0]), (REFERENCE, np.asarray, caches[1])]
                ours, expected = (
                    each.to_host(each.attention(put(q), put(k), put(v), cache, 0, step, head_dim, window))
                    for each, put, cache in given
                )
                yield f"{dtype}, window {window}, {first} to {end}", near(ours, expected, 1e-5 * np.abs(expected).max())


def likeliest_logits(ops: CUDA, extent: Extent) -> Iterator[tuple[str, str]]:
    random = np.random.default_rng(5)
    logits = floats(random, 3, extent.vocab)
    logits[1] = np.round(8 * logits[1])  # many are equal
    logits[2] = np.where(np.abs(logits[2]) < 0.01, 0 * logits[2], -np.abs(logits[2]))  # as are zeros of either sign
    for top in (1, 40):
        found = ops.select(ops.device.put(logits), ops.device.put(np.full(3, top, np.int32)), extent.vocab)[0].numpy()
        for row, entry in zip(logits, found, strict=True):
            ids = np.sort(entry[1 : 1 + entry[0]])
            expected = np.flatnonzero(row >= np.sort(row)[-top])
            yield f"{top} of them", equal(ids, expected) if len(ids) == len(expected) else f"{len(ids)} were found"


def drawn_tokens(ops: CUDA, extent: Extent) -> Iterator[tuple[str, str]]:
    """As engine/sampling.py draws them; the card leaves none of these to the host."""
    random = np.random.default_rng(7)
    rows, put = 64, ops.device.put
    for temperature, top_k, top_p, min_p in ((0, 1, 1, 0), (0.7, 40, 0.95, 0.05), (1, 256, 1, 0), (1.5, 100, 0.8, 0)):
        logits, numbers = 3 * floats(random, rows, extent.vocab), random.random(rows)
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        draws = np.array([(temperature, top_p, min_p, number) for number in numbers])
        tops = np.full(rows, params.top, np.int32)
        tokens = ops.select(put(logits), put(tops), ROOM, put(draws))[1].numpy()
        expected = [sample(row, params, {}, {}, number) for row, number in zip(logits, numbers, strict=True)]
        yield f"at temperature {temperature}", equal(tokens, expected)


def screened_head(ops: CUDA, extent: Extent) -> Iterator[tuple[str, str]]:
    """The same ids and bits as the whole head's."""
    random = np.random.default_rng(6)
    weight = ops.put(DenseTensor(floats(random, extent.vocab, 256).astype(np.float16), "F16"))
    ops.add_screen(weight)
    for rows, top in ((1, 1), (3, 40), (8, 5)):
        scored = Scored(ops.device.put(floats(random, rows, 256)), weight)
        whole = ops.to_host(scored)
        found, _ = screened(ops, scored, ops.device.put(np.full(rows, top, np.int32)), ROOM)
        for mine, row in zip(top_logits(found, rows, extent.vocab), whole, strict=True):
            if mine is None:
                yield f"{rows} rows, top {top}", "too many rows were within reach"
                continue
            expected = np.flatnonzero(row >= np.sort(row)[-top])
            same = np.array_equal(mine.ids, expected) and np.array_equal(mine.values, row[expected])
            yield f"{rows} rows, top {top}", OK if same else "other logits than the whole head's"


def tokens_of_models(ops: CUDA, extent: Extent) -> Iterator[tuple[str, str]]:
    """Three prompts at once, then greedy tokens through a graph, each after the CPU's before it."""
    sources: dict[str, Any] = {
        "BitNet": SyntheticCheckpoint("tiny"),
        "Llama": SyntheticCheckpoint("Falcon3-1B", **LLAMA),
    }
    for name, source in sources.items():
        yield name, same_tokens(ops, source, extent.tokens)
    if extent.built_in:
        with formats.open(builtin_model()) as source:
            yield "the built-in model", same_tokens(ops, source, extent.tokens)


def same_tokens(ops: CUDA, source: Any, count: int) -> str:
    cpu, ours = (models.load(source, each, force=True, head="full") for each in (backends.make("cpu"), ops))
    prompts = [[1 + i * length % 200 for i in range(length)] for length in (3, 20, 45)]
    expected = list(rows_after(cpu, prompts, count, None))
    ties = 0
    forced = [row.argmax(axis=1) for row in expected]
    for i, (row, logits) in enumerate(zip(rows_after(ours, prompts, count, forced), expected, strict=True)):
        for mine, full in zip(row, logits, strict=True):
            token, best = int(mine.argmax()), int(full.argmax())
            if token != best and full[best] - full[token] > 1e-3 * np.abs(full).max():
                return f"token {i} is {token}; the CPU's is {best}"
            ties += token != best
    return f"{OK}, but for {ties} ties" if ties else OK


def rows_after(model: Decoder, prompts: list[list[int]], count: int, forced: list[Any] | None) -> Iterator[Any]:
    """Logits (prompts, vocab) after the prompts, and after each of the tokens `forced`, or the likeliest."""
    c, blocks = model.config, -(-(max(map(len, prompts)) + count) // BLOCK_SIZE)
    cache = model.ops.new_cache(c.num_hidden_layers, len(prompts) * blocks, c.num_key_value_heads, c.head_dim, "f16")
    run = model.ops.compile(model, cache)
    tables = np.arange(len(prompts) * blocks, dtype=np.int32).reshape(len(prompts), blocks)
    starts = np.cumsum([0, *map(len, prompts)]).astype(np.int32)
    ids = np.concatenate(prompts).astype(np.int32)
    positions = np.concatenate([np.arange(len(prompt), dtype=np.int32) for prompt in prompts])
    lengths, top = np.diff(starts), 0 if forced is None else 1
    rows = np.stack([np.asarray(row) for row in run(Step(ids, positions, starts, starts[1:] - 1, tables, top))])
    each = np.arange(len(prompts) + 1, dtype=np.int32)
    for i in range(count):
        yield rows
        ids = (rows.argmax(axis=1) if forced is None else forced[i]).astype(np.int32)
        at = (lengths + i).astype(np.int32)
        rows = np.stack([np.asarray(row) for row in run(Step(ids, at, each, each[:-1], tables, top))])


TESTS: tuple[Test, ...] = (
    ternary_products,
    scales_and_residuals,
    float_products,
    rows_of_numbers,
    attention,
    likeliest_logits,
    drawn_tokens,
    screened_head,
    tokens_of_models,
)
