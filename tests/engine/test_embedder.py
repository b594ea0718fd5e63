"""Embeddings: pooled states, the same whatever is embedded beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bitnet import BitNet
from bitnet.backends.base import Step
from bitnet.engine import Embedder
from bitnet.errors import ContextError, ParameterError, UnsupportedError
from bitnet.models.pooling import read_pooling

PROMPTS = [[1, 2, 3], [7], [*range(40)], [5, 6, 7, 8, 9], [3] * 17]
QWEN3 = tiny.LLAMA | {"model_type": "qwen3", "head_dim": 16}


def states(model: Any, ids: list[int]) -> Any:
    """Of every token, (T, hidden)."""
    return np.asarray(model.hidden(Step.whole(ids), tiny.new_cache(model, len(ids))), np.float64)


def embedder(ops: str, **sizes: int) -> Embedder:
    model = tiny.load(tiny.Synthetic(QWEN3), ops)
    sizes = {"ctx_size": 64, "max_sequences": 3, "chunk": 16} | sizes
    return Embedder(model, **sizes, kv="f32")


@pytest.mark.parametrize("ops", ["reference", "cpu"])
@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_vectors_are_pooled_states_of_length_1(ops: str, pooling: str) -> None:
    ours = embedder(ops).embed(PROMPTS, pooling)
    assert ours.shape == (5, 64) and ours.dtype == np.float32
    model = tiny.load(tiny.Synthetic(QWEN3), "reference")
    for vector, ids in zip(ours, PROMPTS, strict=True):
        found = states(model, ids)
        expected = {"last": found[-1], "mean": found.mean(axis=0), "cls": found[0]}[pooling]
        np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=2e-3)
        assert np.linalg.norm(vector) == pytest.approx(1)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_neither_neighbours_nor_chunks_change_a_bit(pooling: str) -> None:
    together = embedder("cpu").embed(PROMPTS, pooling)
    for sizes in ({"max_sequences": 1, "chunk": 512}, {"max_sequences": 8, "chunk": 7}):
        np.testing.assert_allclose(embedder("cpu", **sizes).embed(PROMPTS, pooling), together, rtol=0, atol=1e-7)
    alone = [embedder("cpu").embed([ids], pooling)[0] for ids in PROMPTS]
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-7)


def test_without_normalisation_vectors_keep_their_length() -> None:
    raw, unit = (embedder("cpu").embed(PROMPTS, "last", normalize=normalize) for normalize in (False, True))
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.1).any()
    np.testing.assert_allclose(raw / lengths, unit, atol=1e-6)


def test_what_cannot_be_embedded_is_said() -> None:
    with pytest.raises(ContextError, match="65 tokens; the context holds 64"):
        embedder("cpu").embed([[1] * 65], "last")
    with pytest.raises(ParameterError, match="without tokens"):
        embedder("cpu").embed([[1], []], "last")
    with pytest.raises(ParameterError, match="outside 0 to 271"):
        embedder("cpu").embed([[272]], "last")
    with pytest.raises(UnsupportedError, match="'max'"):
        embedder("cpu").embed([[1]], "max")
    assert embedder("cpu").embed([], "last").shape == (0, 64)


def test_the_api_takes_a_text_or_a_list(tiny_gguf: Path) -> None:
    with BitNet(tiny_gguf, threads=1) as model:
        one, several = model.embed("the end"), model.embed(["the end", "of all"])
        assert one.shape == (256,) and several.shape == (2, 256)
        np.testing.assert_array_equal(one, several[0])
        assert not np.array_equal(model.embed("the end", pooling="mean"), one)
        with pytest.raises(ParameterError, match="a text or a list"):
            model.embed(3)  # type: ignore[call-overload]


class Folder(tiny.Synthetic):
    def __init__(self, path: Path) -> None:
        super().__init__(tiny.BITNET, {})
        self.path = path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false}', "last"),
        ('{"pooling_mode_mean_tokens": true, "word_embedding_dimension": 64}', "mean"),
        ('{"pooling_mode_cls_token": true}', "cls"),
        ('{"pooling_mode": "lasttoken"}', "last"),
        ('{"pooling_mode_max_tokens": true}', "pooling_mode_max_tokens"),
        ("{}", "last"),
        (None, "last"),
    ],
)
def test_a_folder_says_how_it_pools(tmp_path: Path, config: str | None, expected: str) -> None:
    if config is not None:
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(config)
    assert read_pooling(Folder(tmp_path)) == expected


@pytest.mark.parametrize(("number", "expected"), [(0, "last"), (1, "mean"), (2, "cls"), (3, "last"), (4, "rank")])
def test_a_gguf_file_says_how_it_pools(number: int, expected: str) -> None:
    source = tiny.Synthetic(tiny.BITNET, {})
    source.kind, source.metadata = "gguf", {"bitnet.pooling_type": number}
    assert read_pooling(source) == expected
