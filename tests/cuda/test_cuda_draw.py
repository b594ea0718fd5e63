"""Tokens drawn on the GPU, run on the host: those that the host draws from the same logits.

The emulated card's exp is a unit in the last place away from the host's, as a card's may be.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulated_gpu import EmulatedGPU

from bitnet.backends.cuda import CUDA
from bitnet.backends.cuda.graphs import ROOM
from bitnet.engine import SamplingParams
from bitnet.engine.sampling import sample

VOCAB, ROWS = 300, 64


@pytest.fixture(scope="module", params=[False, True], ids=["forwards", "backwards"])
def ops(request: pytest.FixtureRequest) -> CUDA:
    return CUDA(EmulatedGPU(backwards=request.param))


def drawn(ops: CUDA, logits: Any, params: list[SamplingParams], numbers: Any) -> Any:
    """A token for each row (S,), -1 where the card leaves it to the host."""
    put = ops.device.put
    draws = np.array([(p.temperature, p.top_p, p.min_p, number) for p, number in zip(params, numbers, strict=True)])
    tops = np.array([p.top for p in params], np.int32)
    return ops.select(put(np.asarray(logits, np.float32)), put(tops), ROOM, put(draws))[1].numpy()


def on_the_host(logits: Any, params: list[SamplingParams], numbers: Any) -> Any:
    rows = zip(np.asarray(logits, np.float32), params, numbers, strict=True)
    return np.array([sample(row, p, {}, {}, number) for row, p, number in rows])


def some_params(random: np.random.Generator) -> SamplingParams:
    def pick(*values: float) -> float:
        return values[random.integers(len(values))]

    return SamplingParams(
        temperature=pick(0, 1e-5, 0.3, 0.8, 1, 2.5, 100, random.uniform(0.05, 3)),
        top_k=int(pick(1, 2, 7, 40, 256, random.integers(1, 257))),
        top_p=pick(0, 1e-9, 0.5, 0.95, 1, 1, random.uniform()),
        min_p=pick(0, 0, 0.05, 1, random.uniform()),
    )


LOGITS = {
    "spread": lambda random: 4 * random.standard_normal((ROWS, VOCAB)),
    "flat": lambda random: 1e-3 * random.standard_normal((ROWS, VOCAB)),
    "peaked": lambda random: 300 * random.standard_normal((ROWS, VOCAB)),
    "equal ones": lambda random: np.round(random.standard_normal((ROWS, VOCAB))),
    "ruled out": lambda random: np.where(random.random((ROWS, VOCAB)) < 0.9, -np.inf, random.random((ROWS, VOCAB))),
    "few": lambda random: random.standard_normal((ROWS, 9)),
}


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_those_that_the_host_draws(ops: CUDA, kind: str, seed: int) -> None:
    """Of rows of any mix, nearly all of them on the card."""
    random = np.random.default_rng([seed, *kind.encode()])
    logits, params = LOGITS[kind](random).astype(np.float32), [some_params(random) for _ in range(ROWS)]
    logits[:, 0] = 0  # not all of a row is ruled out
    numbers = random.random(ROWS)
    ours, expected = drawn(ops, logits, params, numbers), on_the_host(logits, params, numbers)
    np.testing.assert_array_equal(np.where(ours < 0, expected, ours), expected)
    assert (ours < 0).sum() <= (ROWS // 8 if kind == "equal ones" else 0)  # sums of equal weights meet their bounds


def weights_of(row: Any, temperature: float) -> Any:
    """Heaviest first."""
    return -np.sort(-np.exp((row.astype(np.float64) - row.max()) / temperature))


@pytest.mark.parametrize("bound", ["number", "top_p", "min_p"])
def test_where_the_last_bit_of_a_weight_would_decide_the_host_draws(ops: CUDA, bound: str) -> None:
    """Bounds on weights and on sums of them, and the numbers next to these."""
    random = np.random.default_rng(3)
    logits = random.standard_normal((ROWS, VOCAB)).astype(np.float32)
    params, numbers = [], []
    for i, row in enumerate(logits):
        weights = weights_of(row, 0.7)[:40]
        shares = weights.cumsum() / weights.sum()
        at = min(1.0, float((weights if bound == "min_p" else shares)[1 + i % 30]) * (1 + (i % 3 - 1) * 2.0**-52))
        limits = {"top_p": 0.999999, "min_p": 0.0} | ({} if bound == "number" else {bound: at})
        params.append(SamplingParams(temperature=0.7, top_k=40, **limits))
        numbers.append(at if bound == "number" else 1 - 2.0**-30)
    assert (drawn(ops, logits, params, np.array(numbers)) == -1).all()


def test_weights_that_may_be_equal_on_the_host_are_left_to_it(ops: CUDA) -> None:
    """Of equal ones it takes the lowest id first: these logits are the same beside 5, or nearly the same."""
    logits = np.array([[5, 1e-20, 2e-20, -1], [5, 1e-15, 3e-15, -1]], np.float32)
    params = [SamplingParams(temperature=1, top_k=3, top_p=0.9999, min_p=0)] * 2
    for number in (0.99, 0.995, 0.999):
        ours, expected = (draw(logits, params, [number] * 2) for draw in (lambda *row: drawn(ops, *row), on_the_host))
        assert ours.tolist() == [expected[0], -1]


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_a_number_is_left_to_the_host(ops: CUDA, odd: float) -> None:
    """Which says so; neighbours are drawn."""
    logits = np.zeros((3, VOCAB), np.float32)
    logits[:, 7], logits[1, 9] = 3, odd
    params = [SamplingParams(temperature=t) for t in (0, 0, 1e-9)]
    np.testing.assert_array_equal(drawn(ops, logits, params, [0.5] * 3), [7, -1, 7])
    ruled_out = np.full((1, VOCAB), -np.inf, np.float32)
    assert drawn(ops, ruled_out, params[:1], [0.5]) == -1


def test_more_equal_logits_than_there_is_room_for_are_left_to_the_host(ops: CUDA) -> None:
    logits = np.zeros((2, ROOM + 1), np.float32)
    logits[1, 0] = -1
    assert drawn(ops, logits, [SamplingParams(temperature=0)] * 2, [0.5] * 2).tolist() == [-1, 1]


def test_the_first_and_the_last_number(ops: CUDA) -> None:
    logits = np.array([[0, 1, 0.5]], np.float32)
    params = [SamplingParams(temperature=1, top_p=1, min_p=0)]
    assert drawn(ops, logits, params, [0.0]) == on_the_host(logits, params, [0.0]) == 0
    assert drawn(ops, logits, params, [1 - 2.0**-53]) == on_the_host(logits, params, [1 - 2.0**-53]) == 2
