"""The screened output head: what it gives is the full head's, bit for bit, and nothing that matters is missing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitnet import _core

Floats = NDArray[np.float32]
DTYPES = ["F32", "F16", "BF16", "Q8_0"]
SEEDS = st.integers(0, 2**32 - 1)


def put(rows: Floats, dtype: str) -> _core.DenseWeight:
    """`rows` rounded to the type, with a screen; Q8_0 with the scale that fits each block."""
    if dtype == "F32":
        w = _core.DenseWeight(rows, dtype)
    elif dtype == "F16":
        with np.errstate(over="ignore"):
            w = _core.DenseWeight(rows.astype(np.float16), dtype)
    elif dtype == "BF16":
        w = _core.DenseWeight((rows.view(np.uint32) >> 16).astype(np.uint16), dtype)
    else:
        n, k = rows.shape
        blocks = rows.reshape(n, k // 32, 32)
        scales = (np.abs(blocks).max(2) / 127).astype(np.float16)
        codes = np.rint(blocks / np.maximum(scales.astype(np.float32), 1e-8)[..., None]).clip(-127, 127)
        w = _core.DenseWeight(codes.astype(np.int8).reshape(n, k), dtype, scales)
    w.add_screen()
    return w


def normal(random: np.random.Generator, n: int, k: int) -> Floats:
    return random.standard_normal((n, k)).astype(np.float32)


def head(x: Floats, w: _core.DenseWeight, *tops: int) -> Floats:
    """tops: of all rows alike, or of one row after the other and again from the first."""
    return _core.head(x, w, np.resize(np.array(tops, np.int32), len(x)))[0]


def check(x: Floats, w: _core.DenseWeight, top: int) -> Floats:
    """The screened logits, after comparing them with all of them."""
    full, found = _core.linear(x, [w])[0], head(x, w, top)
    for row, got in zip(full, found, strict=True):
        needed = row >= np.sort(row)[-min(top, len(row))]  # those equal to the last of them, too
        if not np.isneginf(got).any():
            needed[:] = True  # too many were within reach
        expected = np.where(needed, row, np.float32(-np.inf))
        np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_array_equal(found.argmax(1), full.argmax(1))  # of equals the first
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    s=st.integers(1, 20),
    n=st.integers(1, 300),
    blocks=st.integers(1, 20),
    rest=st.integers(0, 31),
    top=st.integers(1, 64),
)
def test_heads_of_any_shape(dtype: str, seed: int, s: int, n: int, blocks: int, rest: int, top: int) -> None:
    random = np.random.default_rng(seed)
    k = 32 * blocks + (0 if dtype == "Q8_0" else rest)
    rows, x = normal(random, n, k), normal(random, s, k)
    rows *= random.choice([1e-3, 1, 1, 30], (n, 1)).astype(np.float32)
    for isa in _core.isas():
        _core.set_isa(isa)
        check(x, put(rows, dtype), top)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("top", [1, 5, 40])
@pytest.mark.parametrize("count", [2, 9])
def test_few_rows_are_read_precisely(isa: str, dtype: str, top: int, count: int) -> None:
    random = np.random.default_rng(0)
    x, w = normal(random, count, 1024), put(normal(random, 3000, 1024), dtype)
    check(x, w, top)
    assert count * top <= _core.head(x, w, np.full(count, top, np.int32))[1] < count * (4 * top + 20)


def test_a_token_with_many_rows_within_reach_is_looked_at_more_closely(isa: str) -> None:
    """The logits of 4,000 rows differ in what 8 bits of a token drop and 16 keep."""
    x = np.ones((6, 256), np.float32)
    x[:, 0], x[:, 1] = 127, 0.3  # which is 0 as an upper plane
    rows = np.zeros((4000, 256), np.float32)
    rows[:, 1] = np.arange(4000) % 40 + 1
    w = put(rows, "F32")
    check(x, w, 2)
    assert _core.head(x, w, np.full(6, 2, np.int32))[1] == 6 * 100  # those of 40


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rows_are_all_there_and_the_first_wins(isa: str, dtype: str) -> None:
    random = np.random.default_rng(1)
    rows, x = normal(random, 500, 256), normal(random, 3, 256)
    rows[[7, 123, 124, 499]] = 3 * x[0]  # the likeliest, four times
    rows[200:260] = rows[100]
    found = check(x, put(rows, dtype), 2)
    assert found[0].argmax() == 7 and len(set(found[0, [7, 123, 124, 499]].tolist())) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_differ_in_one_bit_are_told_apart(isa: str, dtype: str) -> None:
    random = np.random.default_rng(2)
    x = normal(random, 1, 512)
    rows = np.repeat(x, 400, axis=0)
    rows[np.arange(400), random.integers(0, 512, 400)] *= np.float32(1 + 2**-7)
    for top in (1, 10):
        check(x, put(np.vstack([rows, normal(random, 4000, 512)]), dtype), top)


def test_errors_of_a_row_that_all_point_the_same_way(isa: str) -> None:
    """Half of the rows lose 0.4 at every column of the copy, the others gain it: the copy ranks them wrongly."""
    random = np.random.default_rng(8)
    rows = random.integers(-20, 20, (600, 1024)).astype(np.float32)
    rows[::2] += np.float32(0.4)
    rows[1::2] -= np.float32(0.4)
    rows[1::2, :400] += 1
    rows[:, -1] = 127  # makes the scale 1
    for x in (np.ones((1, 1024), np.float32), rows[:1] - np.rint(rows[:1])):
        found = check(x, put(rows, "F32"), 5)
        assert found.argmax() % 2 == 0
        check(-x, put(rows, "F32"), 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_outliers_and_tiny_numbers(isa: str, dtype: str) -> None:
    random = np.random.default_rng(3)
    rows = normal(random, 640, 320)
    rows[::5] = 0
    rows[1::5] *= 1e-6
    rows[2, 17], rows[7, 3], rows[12, 0] = 6e4, -6e4, 3e4  # beside them the other columns' codes are all 0
    rows[300:310] = 1e-38 if dtype in ("F32", "BF16") else 6e-8
    x = normal(random, 6, 320)
    x[1] = 0
    x[2] *= np.float32(1e-30)
    x[3, 17], x[4, 3] = 1e4, -1e4
    x[5, :] = 0
    x[5, 5] = -3.5
    for top in (1, 3, 64):
        check(x, put(rows, dtype), top)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_numbers_that_are_not_numbers_come_out_as_from_the_full_head(isa: str, value: float) -> None:
    random = np.random.default_rng(4)
    rows, x = normal(random, 400, 96), normal(random, 3, 96)
    w, full = put(rows, "F32"), _core.linear
    x[1, 40] = value
    found, expected = head(x, w, 3), full(x, [w])[0]
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[[0, 2]].argmax(1), expected[[0, 2]].argmax(1))
    assert np.isneginf(found[[0, 2]]).any(1).all()  # the neighbours are screened as ever
    rows[[5, 399], [7, 95]] = value
    x[1, 40] = 1
    w = put(rows, "F32")
    found, expected = head(x, w, 3), full(x, [w])[0]
    kept = ~np.isneginf(found)
    np.testing.assert_array_equal(found[kept], expected[kept])
    assert kept[np.isnan(expected)].all()
    np.testing.assert_array_equal(found.max(1), expected.max(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_rows_on_every_instruction_set_thread_count_and_batch(dtype: str) -> None:
    random = np.random.default_rng(5)
    w, x = put(normal(random, 5000, 608), dtype), normal(random, 19, 608)
    expected = None
    for isa in _core.isas():
        for threads in (1, 3):
            _core.set_isa(isa)
            _core.set_threads(threads)
            found = head(x, w, 20)
            expected = found if expected is None else expected
            np.testing.assert_array_equal(found, expected, err_msg=f"{isa}, {threads} threads")
            np.testing.assert_array_equal(head(x[4:5], w, 20)[0], expected[4])


@pytest.mark.parametrize("tops", [(3, 0), (0, 0, 7, 1), (700, 2), (1, 1, 1, 0)])
@pytest.mark.parametrize("count", [1, 2, 17, 40])
def test_each_row_gets_what_it_gets_alone(isa: str, tops: tuple[int, ...], count: int) -> None:
    random = np.random.default_rng(8)
    w, x = put(normal(random, 700, 96), "F16"), normal(random, count, 96)
    found = head(x, w, *tops)
    for i, row in enumerate(found):
        np.testing.assert_array_equal(row, head(x[i : i + 1], w, tops[i % len(tops)])[0])


def test_a_screen_made_on_any_instruction_set_is_the_same() -> None:
    random = np.random.default_rng(6)
    rows, x = normal(random, 1000, 200), normal(random, 4, 200)
    results = []
    for isa in _core.isas():
        _core.set_isa(isa)
        w = put(rows, "F32")
        _core.set_isa(_core.isas()[0])
        results.append(head(x, w, 7))
    for each in results[1:]:
        np.testing.assert_array_equal(each, results[0])


def test_the_longest_rows_do_not_overflow(isa: str) -> None:
    """All products as large as they can be, and of one sign."""
    k = 65536
    rows = np.ones((40, k), np.float32)
    rows[20:] = -1
    rows[3] = np.float32(1.01)
    for sign in (1, -1):
        check(np.full((1, k), sign, np.float32), put(rows, "F32"), 1)
    with pytest.raises(ValueError, match="65536 are the most"):
        put(np.ones((2, k + 1), np.float32), "F32")


def test_without_a_screen_or_a_limit_all_logits_are_there(isa: str) -> None:
    random = np.random.default_rng(7)
    rows, x = normal(random, 700, 64), normal(random, 2, 64)
    bare, screened = _core.DenseWeight(rows), put(rows, "F32")
    assert bare.screen_nbytes == 0 and screened.screen_nbytes == 704 * (64 + 12) + 4
    for w, top in ((bare, 3), (screened, 0), (screened, 700), (screened, 10**9)):
        np.testing.assert_array_equal(head(x, w, top), _core.linear(x, [w])[0])
    assert head(x[:0], screened, 1).shape == (0, 700)
    with pytest.raises(ValueError, match="63 columns"):
        head(np.ones((1, 63), np.float32), screened, 1)
