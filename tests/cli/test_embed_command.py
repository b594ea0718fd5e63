"""`bitnet embed`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

Bitnet = Callable[..., subprocess.CompletedProcess[str]]


def test_a_vector_a_line(bitnet: Bitnet) -> None:
    result = bitnet("embed", "the end", "of all")
    assert result.returncode == 0, result.stderr
    vectors = [json.loads(line) for line in result.stdout.splitlines()]
    assert np.shape(vectors) == (2, 256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_texts_come_from_arguments_a_pipe_or_a_file(bitnet: Bitnet, tmp_path: Path) -> None:
    file = tmp_path / "texts"
    file.write_text("the end\n\nof all\n", encoding="utf-8")
    found = {
        bitnet("embed", "the end", "of all").stdout,
        bitnet("embed", stdin="the end\nof all").stdout,
        bitnet("embed", "-", stdin="the end\nof all\n").stdout,
        bitnet("embed", "--file", file).stdout,
    }
    assert len(found) == 1 and found.pop().count("\n") == 2


def test_json_says_what_it_holds(bitnet: Bitnet) -> None:
    found = json.loads(bitnet("embed", "the end", "--json", "--pooling", "mean").stdout)
    assert found["pooling"] == "mean" and found["dimensions"] == 256
    assert found["data"][0]["text"] == "the end" and found["data"][0]["tokens"] > 1


def test_similarity_is_a_matrix_of_cosines(bitnet: Bitnet) -> None:
    found = json.loads(bitnet("embed", "a", "a", "b", "--similarity", "--no-normalize", "--json").stdout)["similarity"]
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-6)
    np.testing.assert_allclose(found, np.transpose(found), atol=1e-6)
    assert abs(found[0][1] - 1) < 1e-6 and found[0][2] < 0.999


def test_mistakes_are_explained(bitnet: Bitnet, tmp_path: Path) -> None:
    assert "There is no text" in bitnet("embed", stdin="\n").stderr
    assert "Pooling 'max' is not supported" in bitnet("embed", "a", "--pooling", "max").stderr
    assert "Give one of them" in bitnet("embed", "a", "--file", tmp_path).stderr
