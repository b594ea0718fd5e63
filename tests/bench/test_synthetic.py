"""Synthetic models: the shapes of the real ones, the same numbers everywhere, and activations that stay sane."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet import models
from bitnet.backends.base import Step
from bitnet.errors import ParameterError
from bitnet.models import Decoder
from bitnet.models.synthetic import PRESETS, SyntheticCheckpoint
from bitnet.quant.tensor import TernaryTensor

# Published sizes, in billions: ternary weights, embedding and head.
SIZES = {"2B-4T": (2.084, 0.328), "3B": (3.222, 0.102), "700M": (0.679, 0.049), "8B": (6.979, 1.051)}
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
    assert first.codes[0, :12].tolist() == [0, -1, -1, -1, -1, -1, -1, 1, -1, -1, 0, -1]


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
