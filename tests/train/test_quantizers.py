"""Rounding in training is the definition's in NumPy, and its gradients are those of a plain implementation."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from bitnet.backends.torch import Quantized, bit_linear
from bitnet.errors import ParameterError
from bitnet.quant import threshold
from bitnet.quant.rules import quantize_activations
from bitnet.quant.tensor import DenseTensor, TernaryTensor
from bitnet.quant.threshold import Rule
from bitnet.train.quantizers import FLOAT, Recipe, deployed, quantize, ternarize

RULES = [Rule(name, group=group) for name in ("absmean", "threshold", "optimal") for group in ("tensor", "row", 32)]
IDS = [f"{rule.name}-{rule.group}" for rule in RULES]


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain(x: torch.Tensor, weight: torch.Tensor, rule: Rule, bits: int, blend: float = 1.0) -> torch.Tensor:
    """BitLinear as papers write it: float64, everything dequantised, detach() for the straight-through estimator."""
    made = threshold.ternarize(weight.detach().numpy().astype(np.float32), rule)
    if isinstance(rule.group, int):  # whose scales files hold as float16
        made = TernaryTensor(made.codes, made.scales.astype(np.float16).astype(np.float32))
    rounded = weight + blend * (torch.from_numpy(made.dequantize()).double() - weight).detach()
    if bits < 16:
        most = 2 ** (bits - 1) - 1
        s = most / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
        x = x + blend * ((x * s).round().clamp(-most - 1, most) / s - x).detach()
    return x @ rounded.T


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_codes_and_scales_are_numpys(rule: Rule) -> None:
    weight = floats(16, 96)
    weight[3] = 0
    expected = threshold.ternarize(weight, rule)
    codes, scales = ternarize(torch.from_numpy(weight), rule)
    np.testing.assert_array_equal(codes.numpy(), expected.codes)
    np.testing.assert_allclose(scales.numpy(), expected.scales, rtol=1e-7)


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_forward_and_gradients_are_those_of_a_plain_bitlinear(rule: Rule, bits: int) -> None:
    x, weight = (torch.from_numpy(floats(*shape, seed=3)).requires_grad_() for shape in ((8, 96), (16, 96)))
    made = quantize(weight, 1.58, Recipe(rule, activations=bits), torch.float32)
    (y,) = bit_linear(x, made)
    upstream = torch.from_numpy(floats(8, 16, seed=4))
    y.backward(upstream)
    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = plain(x64, weight64, rule, bits)
    expected.backward(upstream.double())
    for found, wanted in ((y, expected), (x.grad, x64.grad), (weight.grad, weight64.grad)):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("rule", RULES[:3], ids=IDS[:3])
def test_a_blend_lies_between_float_and_rounded(rule: Rule) -> None:
    x, weight = (torch.from_numpy(floats(*shape, seed=3)).requires_grad_() for shape in ((8, 96), (16, 96)))
    (y,) = bit_linear(x, quantize(weight, 1.58, Recipe(rule), torch.float32, torch.tensor(0.25)))
    upstream = torch.from_numpy(floats(8, 16, seed=4))
    y.backward(upstream)
    x64, weight64 = (t.detach().double().requires_grad_() for t in (x, weight))
    expected = plain(x64, weight64, rule, 8, 0.25)
    expected.backward(upstream.double())
    for found, wanted in ((y, expected), (x.grad, x64.grad), (weight.grad, weight64.grad)):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("group", ["tensor", "row", 32])
def test_a_trained_scale_gets_the_gradient_that_finite_differences_find(group: str | int) -> None:
    rule, weight = Rule(group=group), torch.from_numpy(floats(8, 64)).requires_grad_()  # type: ignore[arg-type]
    codes, scales = ternarize(weight.detach(), rule)
    scales = (1.1 * scales).requires_grad_()
    x, upstream = torch.from_numpy(floats(4, 64, seed=1)), torch.from_numpy(floats(4, 8, seed=2))
    (y,) = bit_linear(x, quantize(weight, 1.58, Recipe(rule), torch.float32, scales=scales))
    y.backward(upstream)
    q, s = quantize_activations(x.numpy())
    inputs = q / s[:, None].astype(np.float64)

    def value(at: np.ndarray) -> float:
        matrix = TernaryTensor(codes.numpy().astype(np.int8), at.astype(np.float32)).dequantize()
        return float((upstream.numpy() * (inputs @ matrix.T)).sum())

    for index in np.ndindex(scales.shape):
        moved = [scales.detach().numpy().astype(np.float64).copy() for _ in range(2)]
        moved[0][index] -= 0.01
        moved[1][index] += 0.01
        slope = (value(moved[1]) - value(moved[0])) / 0.02  # it is linear in them
        assert float(scales.grad[index]) == pytest.approx(slope, rel=1e-3, abs=1e-3)
    torch.testing.assert_close(weight.grad, upstream.T @ torch.from_numpy(inputs).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("bits", "dtype", "error"), [(8, "Q8_0", 0.006), (4, "Q4_0", 0.12)])
def test_what_has_4_or_8_bits_is_deployed_as_it_was_trained(bits: int, dtype: str, error: float) -> None:
    weight = torch.from_numpy(floats(8, 96))
    weight[2, :32] = 0
    stored = deployed(weight, bits, Recipe())
    trained = quantize(weight, bits, Recipe(), torch.float32)
    assert isinstance(stored, DenseTensor) and stored.dtype == dtype
    np.testing.assert_array_equal(stored.dequantize(), trained.numpy())
    assert float((trained - weight).norm() / weight.norm()) < error


@pytest.mark.parametrize("rule", RULES, ids=IDS)
def test_what_is_ternary_is_deployed_as_it_was_trained(rule: Rule) -> None:
    weight = torch.from_numpy(floats(8, 96))
    stored, trained = deployed(weight, 1.58, Recipe(rule)), quantize(weight, 1.58, Recipe(rule), torch.float32)
    assert isinstance(trained, Quantized)
    np.testing.assert_array_equal(stored.dequantize(), (trained.codes * trained.scale.view(-1, 1)).numpy())


def test_the_first_pattern_that_matches_decides() -> None:
    recipe = Recipe(mixed={r"layers\.0\.": 16, "down_proj": 4, "layers": 8})
    assert [recipe.bits(f"layers.{name}") for name in ("0.mlp.down_proj", "1.mlp.down_proj", "1.q_proj")] == [16, 4, 8]
    assert Recipe().bits("layers.0.mlp.down_proj") == 1.58 and FLOAT.bits("anything") == 16


@pytest.mark.parametrize(
    "make", [lambda: Recipe(activations=7), lambda: Recipe(mixed={"a": 3}), lambda: Recipe(mixed={"(": 4})]
)
def test_what_no_recipe_can_be_is_refused(make) -> None:
    with pytest.raises(ParameterError):
        make()
