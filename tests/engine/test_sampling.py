"""The filters and the draw, against a definition that sorts everything and sums in plain Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitnet.engine.sampling import SamplingParams, check, largest, log_softmax, sample, token_logprob
from bitnet.errors import BitNetError, ParameterError

NOTHING_SEEN: Mapping[int, int] = {}
LOGITS = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(-8, 8, width=16))


def distribution(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """What each token's probability should be."""
    best = max(logits)
    weights = {i: math.exp((logit - best) / temperature) for i, logit in enumerate(logits)}
    ranked = sorted(weights, key=lambda i: (-weights[i], i))
    kept = ranked[:top_k] if top_k else ranked
    if top_p < 1:
        goal, reached, nucleus = top_p * sum(weights[i] for i in kept), 0.0, []
        for i in kept:
            nucleus.append(i)
            reached += weights[i]
            if reached >= goal:
                break
        kept = nucleus
    kept = [i for i in kept if weights[i] >= min_p * weights[ranked[0]]]
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


@given(
    logits=LOGITS,
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.1, 0.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_draws_follow_the_filtered_distribution(
    logits: np.ndarray[Any, Any], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    expected = distribution(logits.tolist(), temperature, top_k, top_p, min_p)
    nudged = distribution(logits.tolist(), temperature, top_k, top_p * (1 + 1e-9), min_p * (1 - 1e-9))
    assume(expected.keys() == nudged.keys())  # neither filter cuts within the rounding of a sum
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    draws = 500
    drawn = [sample(logits, params, NOTHING_SEEN, NOTHING_SEEN, (i + 0.5) / draws) for i in range(draws)]
    counts = np.bincount(drawn, minlength=len(logits))
    assert {i for i in range(len(logits)) if counts[i]} <= expected.keys()
    for i, probability in expected.items():  # equally spaced draws hit an interval to within one
        assert abs(counts[i] - draws * probability) <= 1 + 1e-6


def test_filters_come_after_one_another_and_not_before() -> None:
    """top_p is a share of what top_k left: 0.5 and 0.3 of 0.8; the third likeliest is gone already."""
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    params = SamplingParams(temperature=1, top_k=2, top_p=0.9, min_p=0)
    assert {sample(logits, params, {}, {}, u) for u in np.linspace(0, 0.999, 99)} == {0, 1}


@given(LOGITS)
def test_temperature_zero_takes_the_first_of_the_likeliest(logits: np.ndarray[Any, Any]) -> None:
    params = SamplingParams(temperature=0, top_k=1, top_p=0.1)
    assert sample(logits, params, {}, {}, 0.999) == logits.tolist().index(max(logits.tolist()))


@given(LOGITS, st.integers(1, 45))
def test_largest_takes_the_lowest_ids_of_equals(weights: np.ndarray[Any, Any], count: int) -> None:
    expected = sorted(range(len(weights)), key=lambda i: (-weights[i], i))[:count]
    assert sorted(largest(weights, np.arange(len(weights)), count)) == sorted(expected)


@pytest.mark.parametrize("draw", [0.0, 0.5, np.nextafter(1, 0)])
def test_extreme_draws_stay_in_the_vocabulary(draw: float) -> None:
    logits = np.zeros(1000, np.float32)
    assert 0 <= sample(logits, SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0), {}, {}, draw) < 1000


def test_a_large_vocabulary_keeps_its_whole_nucleus() -> None:
    """More tokens in the nucleus than the part that is ranked first."""
    logits = np.zeros(1000, np.float32)
    params = SamplingParams(temperature=1, top_k=0, top_p=0.9, min_p=0)
    drawn = {sample(logits, params, {}, {}, (i + 0.5) / 900) for i in range(900)}
    assert drawn == set(range(900))


# Penalties.


@given(
    logits=arrays.arrays(np.float32, 12, elements=st.floats(-8, 8, width=16)),
    prompt=st.dictionaries(st.integers(0, 11), st.integers(1, 5)),
    output=st.dictionaries(st.integers(0, 11), st.integers(1, 5)),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    presence=st.sampled_from([-1.0, 0.0, 0.7]),
    frequency=st.sampled_from([-0.5, 0.0, 0.9]),
)
def test_penalties_are_those_of_their_definitions(
    logits: np.ndarray[Any, Any],
    prompt: dict[int, int],
    output: dict[int, int],
    repetition: float,
    presence: float,
    frequency: float,
) -> None:
    expected = logits.astype(np.float64).copy()
    for i in range(len(expected)):
        if i in prompt or i in output:
            expected[i] = expected[i] / repetition if expected[i] > 0 else expected[i] * repetition
        expected[i] -= presence * (i in output) + frequency * output.get(i, 0)
    assume(len(expected) < 2 or np.diff(np.sort(expected))[-1] > 1e-4)
    before = logits.copy()
    params = SamplingParams(
        temperature=0, repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    assert sample(logits, params, prompt, output, 0.5) == expected.argmax()
    np.testing.assert_array_equal(logits, before)


# Log-probabilities.


@given(LOGITS, st.integers(0, 5))
def test_log_probabilities_sum_to_one_and_rank_as_the_logits(logits: np.ndarray[Any, Any], top: int) -> None:
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1)
    found = token_logprob(logits, 0, top)
    assert found.logprob == pytest.approx(
        float(logits[0]) - math.log(sum(math.exp(x) for x in logits.tolist())), abs=1e-9
    )
    ranked = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    assert [token for token, _ in found.top] == ranked[:top]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_refused(bad: float) -> None:
    for logits in (np.array([0, bad, 1], np.float32), np.full(3, -np.inf, np.float32)):
        for temperature in (0.0, 1.0):
            with pytest.raises(BitNetError, match="not numbers"):
                sample(logits, SamplingParams(temperature=temperature), {}, {}, 0.5)


def test_a_token_may_be_ruled_out_by_minus_infinity() -> None:
    logits = np.array([0, -np.inf, 0], np.float32)
    check(logits)
    drawn = {
        sample(logits, SamplingParams(temperature=1, min_p=0, top_k=0), {}, {}, u) for u in np.linspace(0, 0.99, 50)
    }
    assert drawn == {0, 2}


# Parameters.


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"temperature": True},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 1.01},
        {"min_p": -1},
        {"repetition_penalty": 0},
        {"max_tokens": -1},
        {"seed": -1},
        {"seed": 2**64},
        {"logprobs": 10**6},
        {"stop": ("",)},
        {"stop": "x"},
        {"stop": (3,)},
        {"ignore_eos": 1},
    ],
)
def test_parameters_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        SamplingParams(**wrong)
