"""llama.cpp reads the `rope.scaling.*` of a GGUF file as this program does: the logits of a float Qwen3 are equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import float_models
import numpy as np
import pytest
import tiny

llama_cpp = pytest.importorskip("llama_cpp")
QWEN3 = float_models.FLOAT | tiny.WIDE | {"model_type": "qwen3"}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
RULES: dict[str, dict[str, Any]] = {
    "none": {},
    "usual": {"rope_scaling": YARN},
    "own factors": {"rope_scaling": YARN | {"attention_factor": 1.4, "beta_fast": 4.0, "beta_slow": 0.5}},
}
IDS = [270, *np.random.default_rng(3).integers(0, 256, 150).tolist()]


@pytest.mark.parametrize("rule", RULES)
def test_logits_are_those_of_llama_cpp(rule: str, tmp_path: Path) -> None:
    """Also beyond the context that the model was first trained on."""
    source = float_models.float_model(QWEN3 | RULES[rule])
    for name, weight in source.weights.items():
        source.weights[name] = tiny.DenseTensor(weight.dequantize() * np.float32(0.3 if "_proj" in name else 1))
    path = tiny.convert(source, tmp_path / "m.gguf", embeddings="f32")
    rope = RULES[rule].get("rope_scaling", {})
    theirs = llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_threads=1,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
        flash_attn=False,
        yarn_beta_fast=rope.get("beta_fast", 32.0),  # which this version reads from no file of this architecture
        yarn_beta_slow=rope.get("beta_slow", 1.0),
    )
    theirs.eval(IDS)
    ours = tiny.logits(tiny.load(path), IDS)
    np.testing.assert_allclose(ours, theirs.scores[: len(IDS)], rtol=0, atol=2e-3)
