"""The screened head on the GPU, run on the host: the likeliest logits, to the bits of the whole head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
from emulated_gpu import EmulatedGPU

from bitnet import models
from bitnet.backends.base import Step, TopLogits
from bitnet.backends.cuda import CUDA
from bitnet.backends.cuda.graphs import ROOM, top_logits
from bitnet.backends.cuda.screen import MOST, Scored, screened
from bitnet.quant.tensor import DenseTensor

VOCAB, HIDDEN = 700, 96


@pytest.fixture(scope="module", params=[90, 75])
def ops(request: pytest.FixtureRequest) -> CUDA:
    return CUDA(EmulatedGPU(arch=request.param))


def head(ops: CUDA, dtype: str, values: Any) -> Any:
    data = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else values.astype(np.float16)
    weight = ops.put(DenseTensor(data, dtype))
    ops.add_screen(weight)
    return weight


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("rows, top", [(1, 1), (3, 40), (8, 5)])
def test_the_likeliest_logits_have_the_bits_of_the_whole_head(ops: CUDA, dtype: str, rows: int, top: int) -> None:
    random = np.random.default_rng(rows)
    weight = head(ops, dtype, random.standard_normal((VOCAB, HIDDEN), np.float32))
    x = ops.device.put(random.standard_normal((rows, HIDDEN), np.float32))
    scored = ops.head(x, weight)
    assert isinstance(scored, Scored)
    ops.device.launches.clear()
    found = top_logits(screened(ops, scored, ops.device.put(np.full(rows, top, np.int32)), ROOM)[0], rows, VOCAB)
    for row, all_of_it in zip(found, ops.to_host(scored), strict=True):
        assert row is not None
        expected = np.flatnonzero(all_of_it >= np.sort(all_of_it)[-top])
        np.testing.assert_array_equal(row.ids, expected)
        np.testing.assert_array_equal(row.values, all_of_it[expected])


def test_few_rows_are_computed(ops: CUDA) -> None:
    """Or the screen would be of no use."""
    random = np.random.default_rng(0)
    weight = head(ops, "F16", random.standard_normal((VOCAB, HIDDEN), np.float32))
    x = ops.device.put(random.standard_normal((1, HIDDEN), np.float32))
    seen: list[Any] = []
    gathered = ops.many.gathered

    def watch(*arguments: Any) -> None:
        seen.append(arguments[3].numpy())
        gathered(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops.many, "gathered", watch)
        screened(ops, Scored(x, weight), ops.device.put(np.ones(1, np.int32)), ROOM)
    assert 1 <= seen[0][0] <= VOCAB // 20


def test_bounds_hold_where_rounding_is_worst(ops: CUDA) -> None:
    """Rows and inputs with one large number, beside which the others are rounded away."""
    random = np.random.default_rng(1)
    values = random.standard_normal((VOCAB, HIDDEN), np.float32)
    values[:, 0] = 200
    weight = head(ops, "F16", values)
    x = random.standard_normal((4, HIDDEN), np.float32)
    x[:, 1] = 300
    scored = Scored(ops.device.put(x), weight)
    found = top_logits(screened(ops, scored, ops.device.put(np.ones(4, np.int32)), ROOM)[0], 4, VOCAB)
    np.testing.assert_array_equal([row.ids[0] for row in found if row], ops.to_host(scored).argmax(axis=1))


def test_where_too_many_might_matter_the_head_is_computed_whole(ops: CUDA) -> None:
    """All equal; or not numbers."""
    vocab = MOST + 10
    weight = head(ops, "F16", np.ones((vocab, 64), np.float32))
    for value in (1.0, np.nan):
        scored = Scored(ops.device.put(np.full((1, 64), value, np.float32)), weight)
        found, tokens = screened(ops, scored, ops.device.put(np.ones(1, np.int32)), ROOM)
        assert top_logits(found, 1, vocab) == [None] and tokens.numpy() == [-1]


def test_a_model_with_a_screen_gives_the_same_logits(ops: CUDA) -> None:
    """In a graph, for those who need a few and for those who need all."""
    source = tiny.Synthetic(tiny.BITNET)
    plain, with_screen = (models.load(source, ops, head=head) for head in ("full", "screen"))
    at, starts = np.zeros(1, np.int32), np.array([0, 1], np.int32)
    for top in (1, 1, 3, 0):
        step = Step(at + 7, at, starts, at, at[None], top)
        ours, expected = (ops.compile(model, tiny.new_cache(model, 3))(step) for model in (with_screen, plain))
        assert isinstance(ours[0], TopLogits) == bool(top)
        np.testing.assert_array_equal(np.asarray(ours[0]), np.asarray(expected[0]))
