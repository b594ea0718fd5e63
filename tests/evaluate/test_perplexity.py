"""Perplexity against its definition in float64 over the reference's logits, and against llama.cpp's recorded losses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from bitnet import formats
from bitnet.errors import BitNetError, ParameterError
from bitnet.evaluate import perplexity as module
from bitnet.evaluate.perplexity import cut, perplexity, score_text
from bitnet.models import Decoder
from bitnet.tokenizer import Tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
IDS = [int(i) for i in np.random.default_rng(0).integers(0, 260, 75)]


@pytest.fixture(scope="module")
def model() -> Decoder:
    return tiny.load(tiny.Synthetic(tiny.LLAMA))


def losses(model: Decoder, ids: list[int]) -> list[float]:
    """-log p of each token after the first, from the logits of the whole text."""
    logits = tiny.logits(model, ids, kv="f16").astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return [-math.log(probabilities[i, ids[i + 1]]) for i in range(len(ids) - 1)]


def test_the_second_half_of_each_window_is_scored(model: Decoder) -> None:
    tokenizer = tiny.tokenizer()
    expected = []
    for start in (0, 20, 40):  # the fourth window is not full
        window = [tokenizer.bos_id, *IDS[start + 1 : start + 20]]
        expected += losses(model, window)[10:]  # the logits at 10 predict token 11
    found = perplexity(model, tokenizer, IDS, ctx=20)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)
    assert found.value == pytest.approx(math.exp(sum(expected) / 27), rel=1e-5)
    assert (found.windows, len(found.losses)) == (3, 27)


def test_with_a_stride_every_token_is_scored_once_with_context_before_it(model: Decoder) -> None:
    expected = losses(model, IDS[:20])
    for end in (25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75):
        expected += losses(model, IDS[end - 20 : end])[-5:]
    found = perplexity(model, tiny.tokenizer(), IDS, ctx=20, stride=5)
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)


@given(st.integers(4, 400), st.integers(4, 80), st.integers(1, 79))
def test_overlapping_windows_score_each_token_but_the_first_once(count: int, ctx: int, stride: int) -> None:
    windows = list(cut(count, ctx, stride % ctx or 1))
    assert [i for w in windows for i in range(w.scored, w.end)] == list(range(1, count))
    assert all(0 <= w.start < w.scored < w.end <= count and w.end - w.start <= ctx for w in windows)


def test_a_text_shorter_than_a_window_is_one(model: Decoder) -> None:
    found = perplexity(model, tiny.tokenizer(), IDS[:12], ctx=64)
    bos = tiny.tokenizer().bos_id
    np.testing.assert_allclose(found.losses, losses(model, [bos, *IDS[1:12]])[6:], rtol=1e-5)
    assert (found.windows, found.ctx) == (1, 12)
    assert perplexity(model, tiny.tokenizer(), IDS[:12], ctx=64, stride=8).ctx == 12


def test_rows_of_logits_in_small_parts_give_the_same_losses(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perplexity(model, tiny.tokenizer(), IDS, ctx=64)
    monkeypatch.setattr(module, "ROWS", 7)
    np.testing.assert_allclose(perplexity(model, tiny.tokenizer(), IDS, ctx=64).losses, whole.losses, rtol=1e-5)


def test_characters_are_those_of_the_scored_tokens(model: Decoder) -> None:
    text = "the rain in the den and the thin ant within 🐜 the inner den, " * 3
    found = score_text(model, tiny.tokenizer(), text, ctx=32, stride=16)
    assert found.characters == len(text)  # the first token, which nothing predicts, is the begin-of-text token
    bits = float(found.losses.sum()) / math.log(2) / len(text)
    assert found.bits_per_character == pytest.approx(bits)


def test_the_error_is_the_standard_error_of_the_mean_loss(model: Decoder) -> None:
    found = perplexity(model, tiny.tokenizer(), IDS, ctx=20)
    mean = math.log(found.value)
    variance = sum((loss - mean) ** 2 for loss in found.losses) / 27
    assert found.error == pytest.approx(found.value * math.sqrt(variance / 26))


@pytest.mark.parametrize("name", ["bitnet-silu", "llama"])
def test_the_losses_are_those_that_llama_cpp_recorded(name: str) -> None:
    """llama.cpp rounds activations otherwise, so losses agree on average: see tests/golden/test_llama_cpp.py."""
    passages = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))["passages"]
    model = tiny.load(GOLDEN / f"{name}.gguf", "cpu" if tiny.usable_isas() else "reference")
    with formats.open(GOLDEN / f"{name}.gguf") as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    ours, theirs = [], []
    for passage in passages[:3]:
        ids = passage["ids"]
        found = perplexity(model, tokenizer, ids, ctx=len(ids), stride=1)
        ours += list(found.losses)
        theirs += passage["losses"]
    assert np.exp(np.mean(ours) - np.mean(theirs)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(("count", "ctx", "stride"), [(3, 8, 0), (100, 3, 0), (100, 8, 8), (100, 8, -1)])
def test_sizes_that_make_no_sense_are_refused(model: Decoder, count: int, ctx: int, stride: int) -> None:
    with pytest.raises(ParameterError):
        perplexity(model, tiny.tokenizer(), IDS[:count], ctx, stride)


def test_logits_that_are_not_finite_are_an_error(monkeypatch: pytest.MonkeyPatch, model: Decoder) -> None:
    monkeypatch.setattr(type(model.ops), "head", lambda *_: np.full((9, 272), np.nan, np.float32))
    with pytest.raises(BitNetError, match="not finite"):
        perplexity(model, tiny.tokenizer(), IDS, ctx=20)
