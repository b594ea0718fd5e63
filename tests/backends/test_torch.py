"""PyTorch's operations against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the torch backend needs the train extra: pip install bitnet[train]")

from bitnet.backends.base import Rope, Step
from bitnet.backends.reference import Reference, bit_linear
from bitnet.backends.torch import TorchOps, quantize_activations
from bitnet.quant import rules
from bitnet.quant.tensor import DenseTensor, TernaryTensor

REFERENCE, TORCH = Reference(), TorchOps(torch.float32)
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_activation_codes_and_multipliers_are_numpys() -> None:
    x = floats(16, 64)
    x[3] = 0
    x[4] = 0.5 * np.arange(64) - 16  # ties
    codes, multiplier = rules.quantize_activations(x)
    found, s = quantize_activations(torch.from_numpy(x))
    np.testing.assert_array_equal(found.numpy(), codes)
    np.testing.assert_array_equal(s[:, 0].numpy(), multiplier)


def test_bit_linear_in_float32_is_the_definition() -> None:
    x, weight = floats(8, 256), rules.ternarize(floats(32, 256))
    (found,) = TORCH.linear(torch.from_numpy(x), TORCH.put(weight))
    np.testing.assert_allclose(found.numpy(), bit_linear(x, weight), rtol=1e-6, atol=1e-7)


def test_bit_linear_in_bfloat16_is_the_definition_but_for_rounding() -> None:
    ops, weight = TorchOps(torch.bfloat16), rules.ternarize(floats(32, 256))
    x = torch.from_numpy(floats(8, 256)).bfloat16()
    (found,) = ops.linear(x, ops.put(weight))
    expected = bit_linear(x.float().numpy(), weight)
    np.testing.assert_allclose(found.float().numpy(), expected, rtol=2**-6, atol=2**-7 * np.abs(expected).max())


@pytest.mark.parametrize("scales", [(32,), (32, 4)])
def test_a_scale_for_each_row_or_group_is_the_definition(scales: tuple[int, ...]) -> None:
    x, codes = floats(8, 64), RNG.integers(-1, 2, (32, 64)).astype(np.int8)
    weight = TernaryTensor(codes, np.abs(floats(*scales)))
    (found,) = TORCH.linear(torch.from_numpy(x), TORCH.put(weight))
    np.testing.assert_allclose(found.numpy(), bit_linear(x, weight), rtol=1e-5, atol=1e-5)


def test_stacked_weights_share_one_quantised_input() -> None:
    x, weights = floats(8, 64), [rules.ternarize(floats(n, 64)) for n in (32, 16)]
    together = TORCH.linear(torch.from_numpy(x), *map(TORCH.put, weights))
    for found, weight in zip(together, weights, strict=True):
        np.testing.assert_allclose(found.numpy(), bit_linear(x, weight), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("act", ["silu", "relu2", "gelu"])
def test_gates_are_the_definition(act: str) -> None:
    g, u = floats(4, 32), floats(4, 32)
    found = TORCH.gate(act, torch.from_numpy(g), torch.from_numpy(u))
    np.testing.assert_allclose(found.numpy(), REFERENCE.gate(act, g, u), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["neox", "interleaved"])
def test_rope_is_the_definition(style: str) -> None:
    x, positions, rope = floats(5, 64), np.array([0, 1, 2, 7, 8], np.int32), Rope(10000.0, 16, style)
    found = TORCH.rope(torch.from_numpy(x), positions, rope)
    np.testing.assert_allclose(found.numpy(), REFERENCE.rope(x, positions, rope), rtol=1e-5, atol=1e-6)


def test_rms_norm_embed_head_and_take_are_the_definition() -> None:
    x, weight, table = floats(4, 32), floats(32), DenseTensor(floats(10, 32))
    ids = np.array([3, 1, 9], np.int32)
    put = TORCH.put(table)
    normed = TORCH.rms_norm(torch.from_numpy(x), torch.from_numpy(weight), 1e-5).numpy()
    np.testing.assert_allclose(normed, REFERENCE.rms_norm(x, weight, 1e-5), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(TORCH.embed(ids, put).numpy(), REFERENCE.embed(ids, table))
    np.testing.assert_allclose(
        TORCH.head(torch.from_numpy(x), put).numpy(), REFERENCE.head(x, table), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(TORCH.take(torch.from_numpy(x), np.array([2, 0])).numpy(), x[[2, 0]])


def test_a_cache_of_int8_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="int8; use backend='cpu'"):
        TORCH.new_cache(1, 4, 2, 16, "int8")


def test_attention_with_a_paged_cache_is_the_definition_in_prefill_and_decode() -> None:
    heads, kv_heads, head_dim, prompt = 4, 2, 16, 20
    caches = [ops.new_cache(1, 4, kv_heads, head_dim, "f32") for ops in (REFERENCE, TORCH)]
    whole = Step.whole(list(range(prompt + 1)))
    for begin, end in ((0, prompt), (prompt, prompt + 1)):
        step = Step(whole.ids[begin:end], whole.positions[begin:end], np.array([0, end - begin], np.int32),
                    np.array([0], np.int32), np.array([[3, 1]], np.int32))  # fmt: skip
        q, k, v = floats(end - begin, heads * head_dim), *(floats(end - begin, kv_heads * head_dim) for _ in "kv")
        expected = REFERENCE.attention(q, k, v, caches[0], 0, step, head_dim)
        found = TORCH.attention(*map(torch.from_numpy, (q, k, v)), caches[1], 0, step, head_dim)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)
