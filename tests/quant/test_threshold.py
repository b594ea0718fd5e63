"""Every rule against its definition, weight by weight, and the best threshold against all of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet.errors import ParameterError
from bitnet.quant import rules
from bitnet.quant.tensor import TernaryTensor
from bitnet.quant.threshold import Floats, Group, Rule, ternarize

GROUPS: list[Group] = ["tensor", "row", 4]
# Multiples of 1/8: equal weights are common, and sums are exact.
WEIGHTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.sampled_from([4, 8, 12])),
    elements=st.integers(-40, 40).map(lambda i: i / 8),
)


def units(weight: Floats, group: Group) -> list[Floats]:
    """What shares a scale, one by one."""
    if group == "tensor":
        return [weight.reshape(-1)]
    return list(weight.reshape(-1, weight.shape[1] if group == "row" else int(group)))


def by_unit(made: TernaryTensor, group: Group) -> list[tuple[Floats, float]]:
    codes = units(made.codes, group)
    return list(zip(codes, made.scales.reshape(-1), strict=True))


@pytest.mark.parametrize("group", GROUPS)
@given(weight=WEIGHTS)
def test_absmean_rounds_each_unit_by_its_own_mean(group: Group, weight: Floats) -> None:
    for unit, (codes, scale) in zip(units(weight, group), by_unit(ternarize(weight, Rule(group=group)), group)):
        alone = rules.ternarize(unit[None])
        np.testing.assert_array_equal(codes, alone.codes[0])
        assert scale == alone.scales


@pytest.mark.parametrize("group", GROUPS)
@given(weight=WEIGHTS, alpha=st.sampled_from([0.0, 0.5, 0.7, 1.5, 50.0]))
def test_a_threshold_keeps_what_is_above_it_at_its_mean(group: Group, weight: Floats, alpha: float) -> None:
    made = by_unit(ternarize(weight, Rule("threshold", alpha, group)), group)
    for unit, (codes, scale) in zip(units(weight, group), made, strict=True):
        cut = alpha * sum(abs(float(w)) for w in unit) / len(unit)
        kept = [abs(float(w)) for w in unit if abs(float(w)) > cut]
        assert codes.tolist() == [int(np.sign(w)) if abs(float(w)) > cut else 0 for w in unit]
        assert scale == pytest.approx(sum(kept) / len(kept) if kept else 0)


@given(unit=hnp.arrays(np.float32, 6, elements=st.floats(-2, 2, width=16)))
def test_no_codes_and_scale_at_all_are_better_than_the_optimal_ones(unit: Floats) -> None:
    least = np.inf
    for codes in product((-1.0, 0.0, 1.0), repeat=len(unit)):
        t = np.array(codes)
        scale = unit @ t / (t @ t) if t.any() else 0.0
        least = min(least, float(np.square(unit - scale * t).sum()))
    made = ternarize(unit[None], Rule("optimal"))
    assert np.square(unit.astype(np.float64) - made.dequantize()[0]).sum() <= least * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("group", GROUPS)
@given(weight=WEIGHTS)
def test_the_optimal_rule_is_never_worse_than_a_threshold(group: Group, weight: Floats) -> None:
    best = np.square(weight - ternarize(weight, Rule("optimal", group=group)).dequantize()).sum()
    for alpha in (0.3, 0.7, 1.1):
        other = np.square(weight - ternarize(weight, Rule("threshold", alpha, group)).dequantize()).sum()
        assert best <= other * (1 + 1e-5) + 1e-6


def test_the_optimal_threshold_of_a_normal_matrix_is_near_the_papers() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
    made = ternarize(weight, Rule("optimal"))
    dropped = np.abs(weight[made.codes == 0]).max()
    assert dropped / np.abs(weight).mean() == pytest.approx(0.77, abs=0.02)  # arXiv:1605.04711 approximates it by 0.7
    assert dropped == pytest.approx(float(made.scales) / 2, rel=1e-3)  # the middle between 0 and the scale


@pytest.mark.parametrize("rule", ["absmean", "threshold", "optimal"])
def test_a_matrix_of_many_pieces_is_rounded_like_its_rows(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(1).normal(size=(7, 24)).astype(np.float32)
    whole = ternarize(weight, Rule(rule, group=8))
    monkeypatch.setattr("bitnet.quant.threshold._PIECE", 16)
    pieces = ternarize(weight, Rule(rule, group=8))
    np.testing.assert_array_equal(pieces.codes, whole.codes)
    np.testing.assert_array_equal(pieces.scales, whole.scales)


@pytest.mark.parametrize(("group", "shape"), [("tensor", ()), ("row", (3,)), (8, (3,)), (4, (3, 2)), (2, (3, 4))])
def test_scales_have_the_shape_of_the_group(group: Group, shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(2).normal(size=(3, 8)).astype(np.float32)
    assert ternarize(weight, Rule("optimal", group=group)).scales.shape == shape


@pytest.mark.parametrize("rule", ["absmean", "threshold", "optimal"])
def test_zeros_stay_zeros(rule: str) -> None:
    assert not ternarize(np.zeros((2, 8), np.float32), Rule(rule, group=4)).dequantize().any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("rule", ["absmean", "threshold", "optimal"])
def test_numbers_that_are_not_finite_are_refused(rule: str, bad: float) -> None:
    with pytest.raises(ParameterError, match="not finite"):
        ternarize(np.array([[1, bad, 0, 2]], np.float32), Rule(rule))


def test_a_group_that_does_not_divide_the_rows_is_refused() -> None:
    with pytest.raises(ParameterError, match="Rows of 10 do not divide into groups of 4"):
        ternarize(np.zeros((2, 10), np.float32), Rule(group=4))


@pytest.mark.parametrize(
    "bad", [{"name": "mean"}, {"alpha": -0.1}, {"alpha": float("nan")}, {"group": 0}, {"group": "column"}]
)
def test_a_rule_that_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=f"{next(iter(bad.values()))!s}"):
        Rule(**bad)
