"""Every kernel that this CPU can run, compared with NumPy on shapes that fill no block: int64 where sums are exact,
float64 elsewhere. And with each other, for all instruction sets give the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SHAPES = [(1, 1), (17, 17), (33, 100), (50, 641), (7, 2565)]  # (n, k)
TOKENS = (1, 2, 3, 8, 17)
PACKINGS = ("2bit", "1.6bit", "tl1", "tl2")


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of operation on one instruction set. failure: what is wrong, "" where nothing is."""

    isa: str
    operation: str
    failure: str

    @property
    def passed(self) -> bool:
        return not self.failure


class Wrong(Exception):
    """A result is not what it should be."""


def self_test(core: Any = None) -> list[Check]:
    """All operations on all instruction sets that this CPU can run; the one in use stays in use."""
    if core is None:
        import bitnet._core as core
    before, checks = core.isa(), []
    digests: dict[str, str] = {}  # of the first instruction set's results
    try:
        for isa in core.isas():
            core.set_isa(isa)
            for operation, test in OPERATIONS.items():
                checks.append(Check(isa, operation, failure(core, operation, test, digests)))
    finally:
        core.set_isa(before)
    return checks


def failure(core: Any, operation: str, test: Callable[[Any], Sequence[Array]], digests: dict[str, str]) -> str:
    try:
        results = test(core)
    except (Wrong, ValueError, RuntimeError, MemoryError) as error:
        return str(error) or type(error).__name__
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(each).tobytes() for each in results)).hexdigest()
    return "" if digest == digests.setdefault(operation, digest) else f"other bits than on {core.isas()[0]}"


def ternary(core: Any) -> list[Array]:
    results = []
    for n, k in SHAPES:
        random = np.random.default_rng(n)
        codes = random.integers(-1, 2, (n, k), np.int8)
        for packing in PACKINGS:
            weight = core.TernaryWeight(codes, np.float32(1), packing)
            for tokens in TOKENS:
                q = random.integers(-128, 128, (tokens, k), np.int8)
                got = core.ternary_matmul_i32(weight, q)
                equal(got, q.astype(np.int64) @ codes.astype(np.int64).T, f"{packing} ({n}, {k}) x {tokens}")
                results.append(got)
    return results


def extremes(core: Any) -> list[Array]:
    """Sums as large as they can be: an accumulator that is too narrow overflows."""
    results, k = [], 45568
    for packing in PACKINGS:
        for code, value in ((1, 127), (1, -128), (-1, 127), (-1, -128)):
            weight = core.TernaryWeight(np.full((17, k), code, np.int8), np.float32(1), packing)
            for tokens in (1, 5):
                got = core.ternary_matmul_i32(weight, np.full((tokens, k), value, np.int8))
                equal(got, np.full((tokens, 17), code * value * k), f"{packing}, all {code} x {value}")
                results.append(got)
    return results


def quantization(core: Any) -> list[Array]:
    """By the absmax of each row, to the nearest, ties to even."""
    x = floats(0, 5, 333)
    x[1], x[2] = 0, np.round(x[2] * 4) / 2
    multipliers = np.float32(127) / np.maximum(np.abs(x).max(1), np.float32(1e-5))
    codes = np.clip(np.rint(x * multipliers[:, None]), -128, 127)
    got = core.quantize(x)
    equal(got[0], codes, "codes")
    equal(got[1], multipliers, "multipliers")
    return list(got)


def scaled(core: Any) -> list[Array]:
    """A whole ternary product: one scale, one for each row, one for each group of columns."""
    n, k, results = 37, 384, []
    codes, x = np.random.default_rng(1).integers(-1, 2, (n, k), np.int8), floats(1, 9, k)
    multipliers = np.float32(127) / np.abs(x).max(1)
    q = np.rint(x * multipliers[:, None]).astype(np.float64) / multipliers[:, None]
    for shape in ((), (n,), (n, k // 128)):
        scales = np.random.default_rng(2).uniform(0.5, 2, shape).astype(np.float32)
        full = np.repeat(scales, 128, 1) if len(shape) == 2 else scales[..., None]
        for tokens in (1, 2, 9):
            got = core.linear(x[:tokens].copy(), [core.TernaryWeight(codes, scales)])[0]
            near(got, q[:tokens] @ (codes * full.astype(np.float64)).T, f"scales {shape} x {tokens}")
            results.append(got)
    return results


def dense_weights(core: Any) -> dict[str, tuple[Any, Array]]:
    """A matrix (301, 96) of every stored type, and its values in float64."""
    rows = floats(3, 301, 96)
    half, bits = rows.astype(np.float16), (rows.view(np.uint32) >> 16).astype(np.uint16)
    scales = (np.abs(rows.reshape(301, 3, 32)).max(2) / 127).astype(np.float16)
    q = np.rint(rows / np.repeat(scales, 32, 1).astype(np.float32)).clip(-127, 127).astype(np.int8)
    return {
        "F32": (core.DenseWeight(rows, "F32"), rows.astype(np.float64)),
        "F16": (core.DenseWeight(half, "F16"), half.astype(np.float64)),
        "BF16": (core.DenseWeight(bits, "BF16"), (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)),
        "Q8_0": (core.DenseWeight(q, "Q8_0", scales), q * np.repeat(scales, 32, 1).astype(np.float64)),
    }


def dense(core: Any) -> list[Array]:
    results, x = [], floats(4, 9, 96)
    for dtype, (weight, values) in dense_weights(core).items():
        for tokens in (1, 3, 9):
            got = core.linear(x[:tokens].copy(), [weight])[0]
            near(got, x[:tokens].astype(np.float64) @ values.T, f"{dtype} x {tokens}")
            results.append(got)
        near(core.embed(weight, np.array([300, 0], np.int32)), values[[300, 0]], f"{dtype}, rows")
    return results


def screened(core: Any) -> list[Array]:
    """The likeliest logits are all there, and are the full head's."""
    results, x = [], floats(5, 6, 96)
    for (dtype, (weight, values)), top in product(dense_weights(core).items(), (7, 3)):  # 3: in two rounds
        weight.add_screen()
        (got, _), exact = core.head(x, weight, np.full(len(x), top, np.int32)), x.astype(np.float64) @ values.T
        kept = np.isfinite(got)
        near(got[kept], exact[kept], dtype)
        best = np.argsort(-exact, axis=1)[:, : top - 1]  # the last of them may be as large as the next, rounded
        if not np.take_along_axis(kept, best, 1).all():
            raise Wrong(f"{dtype}: one of the {top} likeliest is missing")
        results.append(got)
    return results


def attention(core: Any) -> list[Array]:
    """A prompt in chunks over scattered blocks, and single tokens after it."""
    results, tokens, heads, shared, dim = [], 83, 6, 3, 40
    q, k, v = floats(6, tokens, heads * dim), floats(7, tokens, heads // shared * dim), floats(8, tokens, 2 * dim)
    table = np.array([[4, 0, 6, 2, 5, 1]], np.int32)
    for dtype in ("F32", "F16", "I8"):
        cache = core.KVCache(2, 7, 16, kv_heads=heads // shared, head_dim=dim, dtype=dtype)
        rows = []
        for begin, end in ((0, 50), (50, 81), (81, 82), (82, 83)):
            positions, starts = np.arange(begin, end, dtype=np.int32), np.array([0, end - begin], np.int32)
            part = [each[begin:end].copy() for each in (q, k, v)]
            rows.append(core.attention(*part, cache, 1, positions, starts, table, dim, dim**-0.5))
        got = np.concatenate(rows)
        want = softmax_attention(q, cached(k, dtype, dim), cached(v, dtype, dim), shared, dim)
        near(got, want, f"{dtype} cache", 1e-4 if dtype == "I8" else 1e-5)  # beside I8 the weights are rounded, too
        results.append(got)
    return results


def cached(x: Array, dtype: str, dim: int) -> Array:
    """Keys or values as a cache of this type has them: I8 by the absmax of each head's vector."""
    if dtype != "I8":
        return x.astype({"F32": np.float32, "F16": np.float16}[dtype])
    vectors = x.reshape(len(x), -1, dim)
    multipliers = np.float32(127) / np.abs(vectors).max(2, keepdims=True)
    codes: Array = np.rint(vectors * multipliers).astype(np.float64) / multipliers
    return codes.reshape(x.shape)


def softmax_attention(q: Array, k: Array, v: Array, shared: int, dim: int) -> Array:
    split = [each.astype(np.float64).reshape(len(each), -1, dim).transpose(1, 0, 2) for each in (q, k, v)]
    keys, values = (np.repeat(each, shared, axis=0) for each in split[1:])
    scores = np.where(np.tri(len(q), dtype=bool), split[0] @ keys.transpose(0, 2, 1) * dim**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attended: Array = (weights / weights.sum(axis=-1, keepdims=True)) @ values
    return attended.transpose(1, 0, 2).reshape(len(q), -1)


def elementwise(core: Any) -> list[Array]:
    x, y, weight = floats(9, 5, 132), floats(10, 5, 132), floats(11, 1, 132)[0]
    a, b = x.astype(np.float64), y.astype(np.float64)
    silu, tanh = a / (1 + np.exp(-a)), np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))
    norm = a / np.sqrt((a * a).mean(1, keepdims=True) + 1e-5) * weight
    angles = np.arange(9)[:, None] * 10.0 ** -np.arange(22)
    cos, sin, positions = np.cos(angles), np.sin(angles), np.array([8, 0, 3, 3, 1], np.int32)
    first, second = np.split(a.reshape(5, 3, 44), 2, axis=2)
    c, s = cos[positions][:, None], sin[positions][:, None]
    turned = np.concatenate([first * c - second * s, second * c + first * s], 2).reshape(5, 132)
    angles32 = cos.astype(np.float32), sin.astype(np.float32)
    expected = {
        "add": (core.add(x, y), a + b),
        "silu": (core.gate(x, y, "silu"), silu * b),
        "relu2": (core.gate(x, y, "relu2"), np.maximum(a, 0) ** 2 * b),
        "gelu": (core.gate(x, y, "gelu"), 0.5 * a * (1 + tanh) * b),
        "rms_norm": (core.rms_norm(x, weight, 1e-5), norm),
        "rope": (core.rope(x, *angles32, positions, 44), turned),
    }
    for name, (got, want) in expected.items():
        near(got, want, name)
    return [got for got, _ in expected.values()]


# In the order of a model's layers; a test raises Wrong, or gives results that must be the same bits everywhere.
OPERATIONS: dict[str, Callable[[Any], list[Array]]] = {
    "ternary products": ternary,
    "largest sums": extremes,
    "quantisation": quantization,
    "scales": scaled,
    "dense products": dense,
    "screened head": screened,
    "attention": attention,
    "norms, gates, rope": elementwise,
}


def floats(seed: int, rows: int, columns: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def equal(got: Array, want: Array, what: str) -> None:
    if got.shape != want.shape or not (got == want).all():
        raise Wrong(f"{what}: {first_difference(got, want, got != want)}")


def near(got: Array, want: Array, what: str, tolerance: float = 1e-5) -> None:
    """Within a few roundings of float32, beside the largest value."""
    bad = ~(np.abs(got - want) <= tolerance * max(1.0, float(np.abs(want).max(initial=0))))
    if bad.any():
        raise Wrong(f"{what}: {first_difference(got, want, bad)}")


def first_difference(got: Array, want: Array, bad: Any) -> str:
    if got.shape != want.shape:
        return f"{got.shape} in place of {want.shape}"
    return f"{got[bad][0]} in place of {want[bad][0]}, {int(bad.sum())} of {bad.size} wrong"
