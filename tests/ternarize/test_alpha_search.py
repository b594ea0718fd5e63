"""The tuner: closed forms against least squares, and that what it finds is better than what it started from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.quant.threshold import Floats, Group, Rule, ternarize
from bitnet.ternarize.calibration import record
from bitnet.ternarize.search import Outputs, search

random = np.random.default_rng(0)
WEIGHT = (random.laplace(size=(24, 64)) ** 3).astype(np.float32)
# Inputs as uneven as a model's: a few columns carry most.
INPUTS = (random.normal(size=(96, 64)) * np.exp(2 * random.normal(size=64))).astype(np.float32)


def error(weight: Floats) -> float:
    wanted = INPUTS.astype(np.float64) @ WEIGHT.T
    return float(np.linalg.norm(INPUTS.astype(np.float64) @ weight.T - wanted) / np.linalg.norm(wanted))


def test_the_scale_of_a_tensor_is_that_of_least_squares() -> None:
    choice, point = Outputs(WEIGHT, INPUTS).fit(Rule("threshold", 0.8))
    made = choice.apply(WEIGHT)
    outputs = (INPUTS.astype(np.float64) @ made.codes.T).reshape(-1, 1)
    best = np.linalg.lstsq(outputs, (INPUTS.astype(np.float64) @ WEIGHT.T).reshape(-1), rcond=None)[0]
    assert float(made.scales) == pytest.approx(best[0], rel=1e-4)
    assert point.error == pytest.approx(error(made.dequantize()), rel=1e-4)
    assert point.sparsity == pytest.approx((made.codes == 0).mean())


@pytest.mark.parametrize("group", ["row", 16])
def test_the_factors_of_rows_are_those_of_least_squares(group: Group) -> None:
    rule = Rule("threshold", 0.8, group)
    choice, point = Outputs(WEIGHT, INPUTS).fit(rule)
    base = ternarize(WEIGHT, rule).dequantize()
    for row in range(len(WEIGHT)):
        outputs = INPUTS.astype(np.float64) @ base[row][:, None]
        best = np.linalg.lstsq(outputs, INPUTS.astype(np.float64) @ WEIGHT[row], rcond=None)[0]
        assert choice.factor is not None and choice.factor[row] == pytest.approx(max(best[0], 0) or 1, rel=1e-3)
    assert point.error == pytest.approx(error(choice.apply(WEIGHT).dequantize()), rel=1e-4)


@pytest.mark.parametrize("group", ["tensor", "row", 16])
def test_the_search_finds_less_error_than_any_fixed_rule(group: Group) -> None:
    outputs = Outputs(WEIGHT, INPUTS)
    found = search(outputs, group)
    tuned = outputs.fit(Rule("threshold", found.best.alpha, group))[0]
    least = error(tuned.apply(WEIGHT).dequantize())
    for rule in (Rule("absmean", group=group), Rule("threshold", 0.7, group), Rule("optimal", group=group)):
        assert least < error(ternarize(WEIGHT, rule).dequantize())
    assert found.best.error == pytest.approx(least, rel=1e-4)


def test_the_search_looks_between_the_points_of_its_grid() -> None:
    found = search(Outputs(WEIGHT, INPUTS), "tensor")
    alphas = [point.alpha for point in found.points]
    assert alphas == sorted(set(alphas)) and len(alphas) >= 16 + 3
    assert found.best.error == min(point.error for point in found.points)
    assert [p.sparsity for p in found.points] == sorted(p.sparsity for p in found.points)


def test_the_grid_grows_where_weights_have_long_tails() -> None:
    random = np.random.default_rng(3)
    weight, inputs = (random.normal(size=(64, 256)).astype(np.float32) for _ in range(2))
    found = search(Outputs(weight**5, inputs), "tensor")
    assert found.best.alpha > 1.6 and found.best.alpha < found.points[-1].alpha


def test_a_projection_of_zeros_or_without_inputs_has_no_error() -> None:
    assert search(Outputs(np.zeros_like(WEIGHT), INPUTS), "row").best.error == 0
    choice, point = Outputs(WEIGHT, np.zeros_like(INPUTS)).fit(Rule("threshold", 0.7))
    assert point.error == 0
    np.testing.assert_array_equal(choice.apply(WEIGHT).scales, ternarize(WEIGHT, Rule("threshold", 0.7)).scales)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_recorded_inputs_are_what_the_projections_read(backend: str, float_gguf: Path) -> None:
    if backend == "cpu":
        pytest.importorskip("bitnet._core")
    model = tiny.load(float_gguf, backend)
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 260, 50)]
    found = record(model, ids, ctx=32)
    assert len(found) == 14
    for name, rows in found.items():
        assert rows.shape == (50, 128 if name.endswith("down_proj") else 64)
    with formats.open(float_gguf) as checkpoint:  # the first projection reads the norm of the embedding
        x = checkpoint.read("token_embd.weight").dequantize()[ids]
        norm = checkpoint.read("blk.0.attn_norm.weight").dequantize()
    normed = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-5) * norm
    np.testing.assert_allclose(found["layers.0.self_attn.q_proj"], normed, rtol=1e-4, atol=1e-5)


def test_recorded_rows_are_spread_over_the_text_and_bounded(float_gguf: Path) -> None:
    model = tiny.load(float_gguf)
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 260, 50)]
    whole = record(model, ids, ctx=20)
    few = record(model, ids, ctx=20, most=2 * (64 * 3 + 128) * 4 * 10)  # ten rows of two layers
    for name, rows in few.items():
        np.testing.assert_array_equal(rows, whole[name][[2, 7, 12, 17, 22, 27, 32, 37, 42, 47]])
