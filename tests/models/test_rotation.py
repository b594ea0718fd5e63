"""A model whose weights were rotated, and whose file says so, computes what it computed before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny

from bitnet.errors import ModelError
from bitnet.quant.tensor import DenseTensor

PROMPT = [1, 5, 9, 200, 31, 7]
FLOAT = tiny.LLAMA | {"quantization_config": None}
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def hadamard(n: int) -> Any:
    """Sylvester's matrix, by the parity of the bits that row and column share (scipy.linalg.hadamard's definition)."""
    i = np.arange(n)
    return np.vectorize(lambda x: 1 - 2 * (bin(x).count("1") % 2))(i[:, None] & i) / np.sqrt(n)


def floats(source: tiny.Synthetic) -> dict[str, Any]:
    """Not quite the ternary numbers, which would be found out and packed."""
    noise = np.random.default_rng(2)
    return {
        name: DenseTensor((w.dequantize() * noise.uniform(0.98, 1.02, w.shape)).astype(np.float32))
        for name, w in source.weights.items()
    }


def rotated(signs: bool, untied: bool = False, block: int = 32) -> tuple[tiny.Synthetic, tiny.Synthetic]:
    """A float model, and the same one stored rotated."""
    config = FLOAT | {"tie_word_embeddings": not untied}
    source = tiny.Synthetic(config)
    source.weights = floats(source)
    random = np.random.default_rng(3)
    widths = [64, 160]
    by_width = {width: random.choice([-1, 1], width) if signs else np.ones(width, int) for width in widths}
    turned, inverse, forward = dict(source.weights), [], []
    for name, w in source.weights.items():
        if w.data.ndim != 2:
            continue
        width = w.shape[1]
        if width % block:
            continue
        # W x = (W S H)(H S x), and a row z = H S h of a table is looked up as h = S H z.
        matrix = np.kron(np.eye(width // block), hadamard(block))
        turned[name] = DenseTensor(((w.data * by_width[width]) @ matrix).astype(np.float32))
        (inverse if name == "model.embed_tokens.weight" else forward).append(name)
    keys: dict[str, Any] = {
        "version": 1,
        "block_size": block,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit" if signs else "identity",
        "weight_names": forward,
        "inverse_weight_names": inverse,
    }
    if signs:
        keys |= {"sign_widths": widths, "sign_values": np.concatenate([by_width[w] for w in widths]).astype(np.int8)}
    metadata = config | {f"prism.hadamard.{key}": value for key, value in keys.items()}
    return source, tiny.Synthetic(metadata, turned)


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("untied", [False, True])
def test_a_rotated_model_is_the_model(signs: bool, untied: bool) -> None:
    source, stored = rotated(signs, untied)
    expected = tiny.logits(tiny.load(source), PROMPT)
    for backend, model in tiny.every_backend(lambda ops: tiny.load(stored, ops)).items():
        with tiny.isa(backend):
            np.testing.assert_allclose(tiny.logits(model, PROMPT), expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_without_the_rotation_it_would_be_another_model() -> None:
    source, stored = rotated(True)
    plain = tiny.Synthetic(FLOAT, stored.weights)
    expected = tiny.logits(tiny.load(source), PROMPT)
    assert np.abs(tiny.logits(tiny.load(plain), PROMPT) - expected).max() > 0.1 * np.abs(expected).max()


def test_replaying_gives_the_bits_of_calling() -> None:
    _, stored = rotated(True, untied=True)
    model = tiny.load(stored, "cpu")
    from bitnet.backends.base import Step

    step, cache = Step.whole(PROMPT), tiny.new_cache(model, len(PROMPT))
    replayed = model.ops.compile(model, cache)(step)
    np.testing.assert_array_equal(replayed, tiny.logits(model, PROMPT))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version is 2"),
        ({"version": None}, "version is None"),
        ({"transform": "dct"}, "transform is 'dct'"),
        ({"axis": "output"}, "axis"),
        ({"block_size": 24}, "block_size is 24"),
        ({"block_size": True}, "block_size"),
        ({"block_size": 64}, "rows of 160"),
        ({"sign_mode": "random"}, "sign_mode is 'random'"),
        ({"sign_widths": [64]}, "sign_widths"),
        ({"sign_widths": [64, 64, 96]}, "sign_widths"),
        ({"sign_widths": "64"}, "sign_widths"),
        ({"sign_values": [1] * 223 + [0]}, "sign_values"),
        ({"sign_values": [1.0] * 224}, "sign_values"),
        ({"sign_values": None}, "sign_values"),
        ({"weight_names": ["blk.7.attn_q.weight"]}, "blk.7.attn_q.weight"),
        ({"weight_names": ["model.norm.weight"]}, "model.norm.weight"),
        ({"weight_names": "all"}, "weight_names is 'all'"),
        ({"inverse_weight_names": ["model.layers.0.self_attn.q_proj.weight"]}, "q_proj"),
    ],
)
def test_what_is_not_understood_is_refused(changes: dict[str, Any], words: str) -> None:
    _, stored = rotated(True)
    stored.metadata |= {f"prism.hadamard.{key}": value for key, value in changes.items()}
    with pytest.raises(ModelError, match=words):
        tiny.load(stored)
