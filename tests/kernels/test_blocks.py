"""Rows in blocks (Q4_0, Q5_0, the K-quants): every instruction set decodes them as quant/blocks.py does, bit for bit,
and multiplies what is decoded as it multiplies floats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bitnet import _core
from bitnet.quant.blocks import BLOCKS, decode

TYPES = sorted(BLOCKS)
Bytes = NDArray[np.uint8]


def random_rows(dtype: str, n: int, blocks: int, seed: int = 0) -> Bytes:
    """Any bytes at all, but for finite scales."""
    random = np.random.default_rng(seed)
    data = random.integers(0, 256, (n, blocks * BLOCKS[dtype].nbytes), np.uint8)
    view = data.reshape(-1).view(BLOCKS[dtype].layout)
    for name in {"d", "dmin"} & {*(view.dtype.names or ())}:
        view[name] = random.standard_normal(len(view)).astype(np.float16) / 8
    return data


def bits(x: NDArray[np.float32]) -> NDArray[np.uint32]:
    return (np.ascontiguousarray(x) + 0.0).view(np.uint32)  # one zero


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("n", "blocks"), [(1, 1), (7, 3), (300, 10)])
def test_rows_are_decoded_to_the_bit(isa: str, dtype: str, n: int, blocks: int) -> None:
    data = random_rows(dtype, n, blocks)
    w = _core.DenseWeight(data, dtype)
    assert (w.shape, w.dtype, w.nbytes) == ((n, blocks * BLOCKS[dtype].weights), dtype, data.size)
    found = _core.embed(w, np.arange(n, dtype=np.int32))
    np.testing.assert_array_equal(bits(found), bits(decode(dtype, data)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("d", [0x0001, 0x03FF, 0x8001, 0x0000, 0x7BFF, 0xFBFF])
def test_every_code_and_every_part_at_extreme_scales(isa: str, dtype: str, d: int) -> None:
    """Subnormal, zero and largest scales; a block of each byte value."""
    kind = BLOCKS[dtype]
    data = np.repeat(np.arange(256, dtype=np.uint8)[:, None], kind.nbytes, axis=1)
    view = data.reshape(-1).view(kind.layout)
    for name in {"d", "dmin"} & {*(view.dtype.names or ())}:
        view[name] = np.array(d, np.uint16).view(np.float16)
    found = _core.embed(_core.DenseWeight(data, dtype), np.arange(256, dtype=np.int32))
    np.testing.assert_array_equal(bits(found), bits(decode(dtype, data)))


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 60), blocks=st.integers(1, 6), tokens=st.integers(1, 20), seed=st.integers(0, 2**32 - 1))
def test_products_are_those_of_the_decoded_floats(dtype: str, n: int, blocks: int, tokens: int, seed: int) -> None:
    data = random_rows(dtype, n, blocks, seed)
    x = np.random.default_rng(seed).standard_normal((tokens, blocks * BLOCKS[dtype].weights)).astype(np.float32)
    for name in _core.isas():
        _core.set_isa(name)
        for threads in (1, 3):
            _core.set_threads(threads)
            found, expected = _core.linear(x, [_core.DenseWeight(data, dtype), _core.DenseWeight(decode(dtype, data))])
            np.testing.assert_array_equal(bits(found), bits(expected), err_msg=f"{name}, {threads} threads")
    np.testing.assert_allclose(found, x.astype(np.float64) @ decode(dtype, data).T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("tokens", [1, 9])
def test_a_screened_head_gives_the_same_logits(isa: str, dtype: str, tokens: int) -> None:
    w = _core.DenseWeight(random_rows(dtype, 500, 512 // BLOCKS[dtype].weights), dtype)
    w.add_screen()
    x = np.random.default_rng(1).standard_normal((tokens, 512)).astype(np.float32)
    full, found = _core.linear(x, [w])[0], _core.head(x, w, np.full(len(x), 5, np.int32))[0]
    kept = ~np.isneginf(found)
    assert (kept.sum(1) >= 5).all() and (kept.sum(1) < 20).all()
    np.testing.assert_array_equal(bits(found[kept]), bits(full[kept]))
    assert (np.sort(full, axis=1)[:, -5:] == np.sort(found, axis=1)[:, -5:]).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_no_row_of_blocks_is_refused(dtype: str) -> None:
    data = random_rows(dtype, 2, 2)
    with pytest.raises(ValueError, match="whole blocks"):
        _core.DenseWeight(np.ascontiguousarray(data[:, :-1]), dtype)
    with pytest.raises(ValueError, match="uint8"):
        _core.DenseWeight(data.view(np.int8), dtype)
    with pytest.raises(ValueError, match="no scales"):
        _core.DenseWeight(data, dtype, np.ones((2, 2), np.float16))
    with pytest.raises(ValueError, match="random"):
        _core.DenseWeight.random(4, 512, dtype)


def test_an_unknown_type_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match='"F32", .*"Q6_K"'):
        _core.DenseWeight(np.zeros((1, 1), np.float32), "Q2_K")
