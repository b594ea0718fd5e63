"""Synthetic models: the shapes of the real ones, the same numbers everywhere, and activations that stay sane."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet import backends, models
from bitnet.backends.base import Step
from bitnet.errors import ParameterError, ResourceError
from bitnet.models import Decoder, memory
from bitnet.models.synthetic import PRESETS, SyntheticCheckpoint
from bitnet.quant import random
from bitnet.quant.random import RandomTernary
from bitnet.quant.tensor import TernaryTensor

# Published sizes, in billions: ternary weights, embedding and head.
SIZES = {
    "1B": (0.931, 0.066),
    "100B": (99.959, 0.262),
    "2B-4T": (2.084, 0.328),
    "3B": (3.222, 0.102),
    "700M": (0.679, 0.049),
    "8B": (6.979, 1.051),
}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_model_that_can_be_opened(name: str) -> None:
    checkpoint = SyntheticCheckpoint(name)
    _, config, shapes = models.open_model(checkpoint)
    assert len(checkpoint.tensors()) == len(shapes) and config.hidden_size == PRESETS[name]["hidden_size"]


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_are_the_published_ones(name: str) -> None:
    infos = SyntheticCheckpoint(name).tensors().values()
    counts = [sum(int(np.prod(i.shape)) for i in infos if i.dtype == dtype) / 1e9 for dtype in ("packed", "F16")]
    assert [round(count, 3) for count in counts] == list(SIZES[name])


def test_a_tensor_depends_on_its_name_and_the_seed_alone() -> None:
    first = SyntheticCheckpoint("tiny").read(Q_PROJ)
    again = SyntheticCheckpoint("tiny", hidden_act="silu").read(Q_PROJ)
    other = SyntheticCheckpoint("tiny", seed=1).read(Q_PROJ)
    assert isinstance(first, TernaryTensor) and isinstance(again, TernaryTensor) and isinstance(other, TernaryTensor)
    assert np.array_equal(first.codes, again.codes) and not np.array_equal(first.codes, other.codes)
    assert first.codes[0, :12].tolist() == [-1, -1, 1, 0, -1, -1, 0, -1, 1, -1, -1, 1]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (16, 16), (33, 50), (100, 1000)])
@pytest.mark.parametrize("seed", [0, 1, 7 << 32 | 12345])
def test_the_core_draws_the_same_codes(shape: tuple[int, int], seed: int) -> None:
    core = pytest.importorskip("bitnet._core")
    here, there = RandomTernary(shape, seed, 0.5), core.TernaryWeight.random(*shape, seed, 0.5)
    assert np.array_equal(here.codes, there.codes()) and here.group == 0
    assert np.array_equal(here.dequantize(), here.codes * np.float32(0.5))


# 100B with a sixteenth of its width and two of its layers.
SIBLING = {
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "intermediate_size": 2848,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


def test_a_large_model_is_drawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the layout of the backend, with no copy of its codes, and computes what the definition does."""
    pytest.importorskip("bitnet._core")
    checkpoint = SyntheticCheckpoint("100B", vocab_size=320, **SIBLING)
    expected = models.load(checkpoint, backends.make("reference"))
    step = Step.whole([1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(random, "random_codes", None)
        model = models.load(checkpoint, backends.make("cpu"))
    logits = [m(step, m.ops.new_cache(2, 1, 4, 128, "f32")) for m in (expected, model)]
    np.testing.assert_allclose(logits[0], logits[1], rtol=2e-3, atol=2e-3)


def test_what_a_large_model_takes_is_known_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 16 << 30)
    with pytest.raises(ResourceError, match="the weights need 2[34].* GiB of memory; 16.00 GiB are free"):
        models.load(SyntheticCheckpoint("100B"), backends.make("reference"), head="full")


def test_the_three_codes_are_equally_likely() -> None:
    codes = SyntheticCheckpoint("100M").read("model.layers.3.mlp.up_proj.weight").codes  # type: ignore[union-attr]
    shares = np.bincount((codes + 1).ravel()) / codes.size
    assert np.abs(shares - 1 / 3).max() < 0.004


def test_logits_are_about_one_in_size(tiny_model: Decoder) -> None:
    c = tiny_model.config
    cache = tiny_model.ops.new_cache(c.num_hidden_layers, 4, c.num_key_value_heads, c.head_dim, "f32")
    logits = tiny_model(Step.whole(list(range(40))), cache)
    assert 0.5 < logits.std() < 2 and np.isfinite(logits).all()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="2B-4T"):
        SyntheticCheckpoint("9000B")
