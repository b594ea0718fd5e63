"""Attention over a paged cache: right, and the same for any chunks, neighbours, threads and instruction sets."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bitnet import _core

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(q: Floats, k: Floats, v: Floats, head_dim: int, scale: float, window: int = 0) -> NDArray[np.float64]:
    """Causal attention of one whole sequence in float64."""
    tokens = len(q)
    qh, kh, vh = (a.astype(np.float64).reshape(tokens, -1, head_dim).transpose(1, 0, 2) for a in (q, k, v))
    shared = len(qh) // len(kh)
    kh, vh = np.repeat(kh, shared, axis=0), np.repeat(vh, shared, axis=0)
    seen = np.tri(tokens, dtype=bool) & ~np.tri(tokens, k=-window if window else -tokens, dtype=bool)
    scores = np.where(seen, qh @ kh.transpose(0, 2, 1) * scale, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return ((weights / weights.sum(axis=-1, keepdims=True)) @ vh).transpose(1, 0, 2).reshape(tokens, -1)


def run(
    q: Floats,
    k: Floats,
    v: Floats,
    cache: _core.KVCache,
    chunks: list[int],
    table: list[int],
    head_dim: int,
    window: int = 0,
) -> Floats:
    """One sequence through layer 1, in chunks."""
    out, begin = [], 0
    for count in chunks:
        rows = slice(begin, begin + count)
        positions = np.arange(begin, begin + count, dtype=np.int32)
        starts, tables = np.array([0, count], np.int32), np.array([table], np.int32)
        part = (np.ascontiguousarray(a[rows]) for a in (q, k, v))
        out.append(_core.attention(*part, cache, 1, positions, starts, tables, head_dim, head_dim**-0.5, window))
        begin += count
    return np.concatenate(out)


def setup(
    tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: str, block_size: int = 16
) -> tuple[Floats, Floats, Floats, _core.KVCache, list[int]]:
    q, k, v = (
        normal(tokens, heads * head_dim),
        normal(tokens, kv_heads * head_dim, seed=1),
        normal(tokens, kv_heads * head_dim, seed=2),
    )
    blocks = -(-tokens // block_size) + 5
    cache = _core.KVCache(2, blocks, block_size, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
    return q, k, v, cache, [int(b) for b in np.random.default_rng(3).permutation(blocks)]


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"),
    [(1, 1, 16), (4, 4, 100), (6, 2, 96), (5, 1, 64), (8, 2, 128), (2, 1, 256), (3, 3, 7), (8, 1, 32)],
)
def test_attention(isa: str, dtype: str, heads: int, kv_heads: int, head_dim: int) -> None:
    q, k, v, cache, table = setup(50, heads, kv_heads, head_dim, dtype)
    got = run(q, k, v, cache, [50], table, head_dim)
    if dtype == "F16":
        k, v = k.astype(np.float16).astype(np.float32), v.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(got, reference(q, k, v, head_dim, head_dim**-0.5), atol=3e-6)


@pytest.mark.parametrize("block_size", [16, 64])
@pytest.mark.parametrize("dtype", ["F32", "F16", "I8"])
def test_chunks_threads_and_instruction_sets_give_the_same_bits(dtype: str, block_size: int) -> None:
    tokens, head_dim = 700, 64  # three segments of 256 positions
    results = []
    for name in _core.isas():
        for threads, chunks in [
            (1, [700]),
            (3, [700]),
            (2, [1] * 20 + [300, 379, 1]),
            (4, [256, 256, 188]),
            (3, [699, 1]),
        ]:
            _core.set_isa(name)
            _core.set_threads(threads)
            q, k, v, cache, table = setup(tokens, 4, 2, head_dim, dtype, block_size)
            results.append((f"{name} {threads} {chunks[:3]}", run(q, k, v, cache, chunks, table, head_dim)))
    for label, result in results:
        np.testing.assert_array_equal(result.view(np.uint32), results[0][1].view(np.uint32), err_msg=label)
    if dtype == "F32":
        np.testing.assert_allclose(results[0][1], reference(q, k, v, head_dim, head_dim**-0.5), atol=5e-6)


@pytest.mark.parametrize("dtype", ["F32", "F16", "I8"])
@pytest.mark.parametrize("window", [1, 5, 16, 100, 256, 257, 600, 5000])
def test_a_window_hides_what_lies_before_it(window: int, dtype: str) -> None:
    tokens, head_dim, results = 700, 32, []
    for name in _core.isas():
        for threads, chunks in [(1, [700]), (3, [1] * 9 + [291, 400]), (2, [699, 1])]:
            _core.set_isa(name)
            _core.set_threads(threads)
            q, k, v, cache, table = setup(tokens, 4, 2, head_dim, dtype)
            results.append(run(q, k, v, cache, chunks, table, head_dim, window))
    for result in results[1:]:
        np.testing.assert_array_equal(result.view(np.uint32), results[0].view(np.uint32))
    expected = reference(q, k, v, head_dim, head_dim**-0.5, window)
    np.testing.assert_allclose(results[0], expected, atol={"F32": 5e-6, "F16": 5e-3, "I8": 8e-2}[dtype])
    if window >= tokens:
        q, k, v, cache, table = setup(tokens, 4, 2, head_dim, dtype)
        np.testing.assert_array_equal(results[0], run(q, k, v, cache, [700], table, head_dim))


@pytest.mark.parametrize("dtype", ["F16", "I8"])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(3, 3, 40), (5, 1, 7), (6, 2, 16), (70, 1, 16)])
def test_rows_of_any_grouping_give_the_same_bits(heads: int, kv_heads: int, head_dim: int, dtype: str) -> None:
    tokens, results = 300, []
    for name in _core.isas():
        for chunks in [[300], [7, 250, 43], [1] * 300]:
            _core.set_isa(name)
            q, k, v, cache, table = setup(tokens, heads, kv_heads, head_dim, dtype, 32)
            results.append(run(q, k, v, cache, chunks, table, head_dim))
    for result in results[1:]:
        np.testing.assert_array_equal(result.view(np.uint32), results[0].view(np.uint32))


@pytest.mark.parametrize("dtype", ["F16", "I8"])
def test_later_positions_reach_no_earlier_row(isa: str, dtype: str) -> None:
    q, k, v, cache, table = setup(40, 3, 1, 24, dtype)
    want = run(q, k, v, cache, [40], table, 24)
    k[30:], v[30:] = np.nan, np.inf
    got = run(q, k, v, cache, [40], table, 24)
    np.testing.assert_array_equal(got[:30], want[:30])
    np.testing.assert_array_equal(
        run(q[:30], k[:30], v[:30], cache, [30], table, 24), want[:30]
    )  # the cache holds them now
    assert np.isnan(got[30:]).all()


@pytest.mark.parametrize("dtype", ["F16", "I8"])
def test_neighbours_in_the_batch_change_nothing(dtype: str) -> None:
    head_dim = 32
    lengths, tables = [300, 1, 17], [list(range(0, 19)), [30] + [0] * 18, [40, 41] + [0] * 17]
    q, k, v, cache, _ = setup(318, 4, 2, head_dim, dtype)
    cache = _core.KVCache(2, 50, 16, kv_heads=2, head_dim=head_dim, dtype=dtype)
    positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    together = _core.attention(
        q, k, v, cache, 1, positions, starts, np.array(tables, np.int32), head_dim, head_dim**-0.5
    )
    for b, n in enumerate(lengths):
        alone = _core.KVCache(2, 50, 16, kv_heads=2, head_dim=head_dim, dtype=dtype)
        rows = slice(starts[b], starts[b] + n)
        got = run(q[rows].copy(), k[rows].copy(), v[rows].copy(), alone, [n], tables[b], head_dim)
        np.testing.assert_array_equal(got, together[rows])


@pytest.mark.parametrize("dtype", ["F16", "I8"])
def test_copied_blocks_serve_as_a_shared_prefix(dtype: str) -> None:
    q, k, v, cache, table = setup(48, 2, 1, 16, dtype)
    want = run(q, k, v, cache, [48], table, 16)
    free = table[-1]
    cache.copy_block(table[0], free)
    positions, starts = np.arange(16, 48, dtype=np.int32), np.array([0, 32], np.int32)
    tables = np.array([[free, *table[1:]]], np.int32)
    got = _core.attention(q[16:].copy(), k[16:].copy(), v[16:].copy(), cache, 1, positions, starts, tables, 16, 0.25)
    np.testing.assert_array_equal(got, want[16:])


def test_memory_is_only_promised() -> None:
    cache = _core.KVCache(32, 65536, 16, kv_heads=8, head_dim=128, dtype="F16")
    assert cache.nbytes == 2 * 32 * 65536 * 16 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tables": [[99]]}, "99"),
        ({"tables": [[-1]]}, "-1"),
        ({"positions": [0, 16]}, "block table covers 16"),
        ({"positions": [0, -1]}, "negative"),
        ({"starts": [0, 1]}, "number of tokens"),
        ({"starts": [0, 3, 2]}, "sequences need"),
        ({"layer": 2}, "layer is 2"),
        ({"head_dim": 8}, "head_dim"),
    ],
)
def test_bad_batches_are_refused(change: dict[str, object], message: str) -> None:
    cache = _core.KVCache(1, 4, 16, kv_heads=1, head_dim=16, dtype="F16")
    x = normal(2, 16)
    call = {"tables": [[0]], "positions": [0, 1], "starts": [0, 2], "layer": 0, "head_dim": 16} | change
    arrays = (np.array(call[name], np.int32) for name in ("positions", "starts", "tables"))
    with pytest.raises(ValueError, match=message):
        _core.attention(x, x, x, cache, call["layer"], *arrays, call["head_dim"], 1.0)
