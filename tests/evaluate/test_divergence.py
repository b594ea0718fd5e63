"""Divergences against their definition in float64 over the logits of whole windows."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from bitnet.errors import ParameterError
from bitnet.evaluate.divergence import divergence
from bitnet.models import Decoder

IDS = [int(i) for i in np.random.default_rng(3).integers(0, 260, 50)]


@pytest.fixture(scope="module")
def models() -> tuple[Decoder, Decoder]:
    sources = (tiny.Synthetic(tiny.LLAMA, tiny.random_weights(tiny.LLAMA, seed)) for seed in (1, 2))
    model, base = map(tiny.load, sources)
    return model, base


def test_divergence(models: tuple[Decoder, Decoder]) -> None:
    model, base = models
    tokenizer = tiny.tokenizer()
    found = divergence(model, base, tokenizer, IDS, ctx=20)
    kl, same, losses = [], [], []
    for start in (0, 20):
        ids = [tokenizer.bos_id, *IDS[start + 1 : start + 20]]
        q, p = (log_softmax(tiny.logits(each, ids, kv="f16")[:, : tokenizer.vocab_size]) for each in models)
        for row in range(10, 19):  # the second half of the window, its first token predicted from row 10 on
            kl.append(sum(np.exp(p[row]) * (p[row] - q[row])))
            same.append(p[row].argmax() == q[row].argmax())
            losses.append(-q[row, ids[row + 1]])
    np.testing.assert_allclose(found.kl, kl, rtol=1e-4)
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    assert found.agreement == np.mean(same)
    assert found.mean == pytest.approx(np.mean(kl), rel=1e-4)
    assert found.perplexities[0] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def test_a_model_does_not_diverge_from_itself(models: tuple[Decoder, Decoder]) -> None:
    found = divergence(models[0], models[0], tiny.tokenizer(), IDS, ctx=16)
    assert (found.quantile(1), found.agreement) == (0, 1)
    assert found.perplexities[0] == found.perplexities[1]


def test_other_vocabularies_are_refused(models: tuple[Decoder, Decoder]) -> None:
    class Larger:
        vocab_size = models[0].config.vocab_size + 1

    with pytest.raises(ParameterError, match="different vocabularies"):
        divergence(models[0], models[0], Larger(), IDS)  # type: ignore[arg-type]
