"""Folders written by `transformers` give the same logits and tokens here as there.

Both compute in float32 from the same stored weights. transformers multiplies round(x * s) / s by a float weight, ours
multiplies integers and scales once: what is left is the order of float32 sums. On logits of standard deviation 2.5 the
two differ by at most 7e-6, so TOLERANCE leaves a factor of three.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

hf_folders = pytest.importorskip("hf_folders")  # needs torch and transformers
one_bit_llm = pytest.importorskip("one_bit_llm")
torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

CASES, PROMPT = hf_folders.CASES, hf_folders.PROMPT
TOLERANCE = 2e-5
NEW_TOKENS = 16


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    hf_folders.write(CASES[name], tmp_path)
    logits, tokens = hf_folders.run(tmp_path, PROMPT, NEW_TOKENS)
    for backend, model in tiny.every_backend(lambda ops: tiny.load(tmp_path, ops)).items():
        with tiny.isa(backend):
            tiny.assert_same_logits(tiny.logits(model, PROMPT), logits, TOLERANCE, backend)
            assert tiny.greedy(model, PROMPT, NEW_TOKENS) == tokens, backend


def test_dividing_and_multiplying_scales_are_told_apart(tmp_path: Path) -> None:
    """The same weights under both linear classes are the same model; with the class exchanged they are not."""
    for linear_class in ("bitlinear", "autobitlinear"):
        hf_folders.write(hf_folders.Case(hf_folders.LLAMA, linear_class, dtype=torch.float32), tmp_path / linear_class)
    ours = {each.name: tiny.logits(tiny.load(each), PROMPT) for each in tmp_path.iterdir()}
    np.testing.assert_allclose(ours["bitlinear"], ours["autobitlinear"], rtol=0, atol=TOLERANCE)
    config = tmp_path / "bitlinear" / "config.json"
    config.write_text(config.read_text().replace('"bitlinear"', '"autobitlinear"'))
    assert np.abs(tiny.logits(tiny.load(tmp_path / "bitlinear"), PROMPT) - ours["bitlinear"]).max() > 0.5


def test_1bitllm_folders_compute_their_published_forward_pass(tmp_path: Path) -> None:
    one_bit_llm.write(tmp_path)
    oracle = one_bit_llm.run(tmp_path, PROMPT)
    for backend, model in tiny.every_backend(lambda ops: tiny.load(tmp_path, ops)).items():
        with tiny.isa(backend):
            tiny.assert_same_logits(tiny.logits(model, PROMPT), oracle, TOLERANCE, backend)
