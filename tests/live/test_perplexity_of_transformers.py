"""Perplexity and divergence are those of the logits of `transformers`, put together in float64 as its guide does it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny

hf_folders = pytest.importorskip("hf_folders")  # needs torch and transformers
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from bitnet.evaluate.divergence import divergence
from bitnet.evaluate.perplexity import perplexity

VOCABULARY, CTX, STRIDE, BOS = hf_folders.SMALL["vocab_size"], 24, 9, 1
TOKENS = np.random.default_rng(3).integers(2, VOCABULARY, CTX + 5 * STRIDE).tolist()
TOLERANCE = 5e-5  # nats: what float32 leaves of them; 5e-6 are found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model, and one of other weights; seeds with which no activation is at a boundary of rounding, see Case."""
    root = tmp_path_factory.mktemp("folders")
    for seed in (0, 2):
        case = hf_folders.Case(hf_folders.BITNET, "autobitlinear", "online", seed=seed)
        hf_folders.write(case, root / str(seed))
    return sorted(root.iterdir())


def tokenizer(add_bos: bool) -> Any:
    return SimpleNamespace(add_bos=add_bos, bos_id=BOS, vocab_size=VOCABULARY, decode=lambda ids: "x" * len(ids))


def theirs(folder: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return torch.nn.Module.float(model).eval()


@torch.no_grad()
def log_probabilities(model: Any, ids: list[int]) -> Any:
    """(T, vocab) in float64: of the token after each."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)


def test_strided_perplexity_is_that_of_the_guide_of_transformers(folders: list[Path]) -> None:
    """https://huggingface.co/docs/transformers/perplexity: each window scores what the one before has not."""
    model, expected, scored = theirs(folders[0]), [], 1
    for begin in range(0, len(TOKENS), STRIDE):
        end = min(begin + CTX, len(TOKENS))
        found = log_probabilities(model, TOKENS[begin:end])
        expected += [-float(found[at - begin - 1, TOKENS[at]]) for at in range(scored, end)]
        scored = end
        if end == len(TOKENS):
            break
    ours = perplexity(tiny.load(folders[0], "cpu"), tokenizer(False), TOKENS, CTX, STRIDE, "f32")
    np.testing.assert_allclose(ours.losses, expected, rtol=0, atol=TOLERANCE)
    assert len(expected) == len(TOKENS) - 1
    assert ours.value == pytest.approx(float(np.exp(np.mean(expected))), rel=TOLERANCE)


def test_the_divergence_from_a_base_is_that_of_both_models_logits(folders: list[Path]) -> None:
    """In the second halves of windows side by side, whose first token gives its place to the begin-of-text token."""
    kl, same, losses = [], [], []
    models = [theirs(folder) for folder in folders]
    for begin in range(0, len(TOKENS) - CTX + 1, CTX):
        window = [BOS, *TOKENS[begin + 1 : begin + CTX]]
        q, p = (log_probabilities(model, window)[CTX // 2 : -1] for model in models)
        kl += torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).tolist()
        same += (q.argmax(-1) == p.argmax(-1)).tolist()
        losses += [-float(row[token]) for row, token in zip(q, window[CTX // 2 + 1 :], strict=True)]
    model, base = (tiny.load(folder, "cpu") for folder in folders)
    ours = divergence(model, base, tokenizer(True), TOKENS, CTX, "f32")
    assert min(kl) > 0.01 and len(kl) == 2 * (CTX // 2 - 1)
    np.testing.assert_allclose(ours.kl, kl, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.losses, losses, rtol=0, atol=TOLERANCE)
    assert ours.same_top.tolist() == same
    assert ours.mean == pytest.approx(float(np.mean(kl)), abs=TOLERANCE)
