"""`bitnet quantize` and `bitnet perplexity`."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from float_models import TEXT, float_model

Bitnet = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.convert(float_model(), tmp_path_factory.mktemp("float") / "float.gguf")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_it_writes_a_model_that_runs_and_warns(bitnet: Bitnet, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    result = bitnet("quantize", source, out)
    assert result.returncode == 0, result.stderr
    assert "0.self_attn.q_proj" in result.stdout and "of them zero" in result.stdout
    assert "expect its quality to be destroyed" in result.stderr and "bitnet train" in result.stderr
    assert bitnet("run", "the", "-n", "3", "-m", out).returncode == 0


def test_a_text_gives_perplexities(bitnet: Bitnet, source: Path, text: Path, tmp_path: Path) -> None:
    arguments = ("quantize", source, tmp_path / "out.gguf", "--rule", "optimal", "--group", "64", "--json")
    result = bitnet(*arguments, "--calibration", text, "--ctx", "32", "--report", tmp_path / "report.json")
    found = json.loads(result.stdout)
    assert found["type"] == "Q2_0" and found["group"] == 64
    assert f"{found['perplexity']['before']:.4g} -> {found['perplexity']['after']:.4g}" in result.stderr
    written = json.loads((tmp_path / "report.json").read_text())
    assert {**found} == {"source": str(source), "out": str(tmp_path / "out.gguf"), **written}
    scored = bitnet("perplexity", text, "-m", tmp_path / "out.gguf", "--ctx", "32", "--json")
    assert json.loads(scored.stdout)["perplexity"] == pytest.approx(found["perplexity"]["after"])


def test_tuning_shows_every_trial_and_draws(bitnet: Bitnet, source: Path, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ("quantize", source, tmp_path / "out.gguf", "--tune", "--calibration", text, "--ctx", "32")
    result = bitnet(*arguments, "--plot", tmp_path / "tuned.svg")
    assert result.returncode == 0, result.stderr
    for word in ("absmean", "threshold 0.7", "optimal", "tuned × 1", "kept", "output error"):
        assert word in result.stdout
    assert "<svg" in (tmp_path / "tuned.svg").read_text()


def test_a_ternary_model_is_told_so(bitnet: Bitnet, tiny_gguf: Path, tmp_path: Path) -> None:
    result = bitnet("quantize", tiny_gguf, tmp_path / "out.gguf")
    assert result.returncode == 0, result.stderr
    assert "all keep their codes" in result.stdout and "destroyed" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tune",), "--calibration"),
        (("--plot", "a.svg"), "--tune"),
        (("--group", "column"), "--group"),
        (("--group", "100"), "do not divide into groups of 100"),
        (("--rule", "mean"), "The rule is 'mean'"),
        (("--alpha", "-1"), "--alpha"),
        (("--type", "q4_0"), "--type"),
        (("--embeddings", "q4_0"), "embeddings"),
        (("--skip", "head"), "--skip head"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    arguments: tuple[str, ...], message: str, bitnet: Bitnet, source: Path, tmp_path: Path
) -> None:
    result = bitnet("quantize", source, tmp_path / "out.gguf", *arguments)
    assert result.returncode == 2 and message in result.stderr
    assert not (tmp_path / "out.gguf").exists()


def test_a_file_is_replaced_only_when_asked(bitnet: Bitnet, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out.gguf").write_text("mine")
    assert bitnet("quantize", source, tmp_path / "out.gguf").returncode == 2
    assert (tmp_path / "out.gguf").read_text() == "mine"
    assert bitnet("quantize", source, tmp_path / "out.gguf", "--force").returncode == 0
    assert (tmp_path / "out.gguf").read_bytes()[:4] == b"GGUF"


def test_the_source_is_never_overwritten(bitnet: Bitnet, source: Path) -> None:
    before = source.read_bytes()
    result = bitnet("quantize", source, source, "--force")
    assert result.returncode == 2 and source.read_bytes() == before


def test_perplexity_prints_a_line(bitnet: Bitnet, text: Path) -> None:
    result = bitnet("perplexity", text, "--ctx", "64")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("perplexity ") and "bits per character" in result.stdout


def test_perplexity_reads_stdin(bitnet: Bitnet, text: Path) -> None:
    piped, named = bitnet("perplexity", "-", stdin=TEXT), bitnet("perplexity", text)
    assert piped.stdout == named.stdout != ""


def test_perplexity_of_too_short_a_text_is_a_usage_error(bitnet: Bitnet) -> None:
    assert bitnet("perplexity", "-", stdin="a").returncode == 2
    assert bitnet("perplexity", "-", stdin="").returncode == 2
