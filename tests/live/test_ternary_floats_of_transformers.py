"""TriLM's folders, floats that are ternary already: the logits of transformers, its activations rounded as ours are.

TriLM was trained with float activations. What rounding them to 8 bits for each token changes is bounded here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

hf_folders = pytest.importorskip("hf_folders")  # needs torch and transformers
torch = pytest.importorskip("torch")
bitnet = pytest.importorskip("transformers.integrations.bitnet")
transformers = pytest.importorskip("transformers")
CASE = hf_folders.Case(hf_folders.LLAMA, "", "online", torch.float16, seed=4)


@pytest.fixture(params=[1, 2])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Trained on so many devices, each with a scale of its own for some of the rows, or of the columns."""
    hf_folders.write(CASE, tmp_path, ternary=request.param)
    return tmp_path


def run(folder: Path, rounded: bool) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    for name, module in model.named_modules():
        if rounded and name.endswith("_proj"):
            module.register_forward_pre_hook(lambda _, inputs: (bitnet.ActQuant.apply(inputs[0]),))
    with torch.no_grad():
        return model(torch.tensor([hf_folders.PROMPT])).logits[0].numpy()


def test_logits_are_those_of_transformers_with_rounded_activations(folder: Path) -> None:
    expected = run(folder, rounded=True)
    for backend, model in tiny.every_backend(lambda ops: tiny.load(folder, ops)).items():
        with tiny.isa(backend):
            tiny.assert_same_logits(tiny.logits(model, hf_folders.PROMPT), expected, 2e-5, backend)


def test_rounding_the_activations_changes_little(folder: Path) -> None:
    expected, ours = run(folder, rounded=False), tiny.logits(tiny.load(folder), hf_folders.PROMPT)
    error = np.sqrt(np.mean((ours - expected) ** 2)) / expected.std()
    assert 0 < error < 0.05  # 0.037 on these random weights
