"""`bitnet plan`: tables, JSON and exit codes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("bitnet._core")

Bitnet = Callable[..., subprocess.CompletedProcess[str]]


def test_the_parts_add_up(bitnet: Bitnet, tiny_gguf: Path) -> None:
    found = json.loads(bitnet("plan", tiny_gguf, "-c", 512, "--json").stdout)
    parts = sum(found["weights"].values()) + found["cache"] + sum(found["step"].values())
    assert found["total"] == parts and found["fits"] and found["cache"] == 512 * found["cache_per_token"]
    twice = json.loads(bitnet("plan", tiny_gguf, "-c", 512, "--sequences", 2, "--json").stdout)
    assert twice["cache"] == 2 * found["cache"]


def test_a_draft_model_is_counted(bitnet: Bitnet, tiny_gguf: Path) -> None:
    alone = json.loads(bitnet("plan", tiny_gguf, "--json").stdout)
    both = json.loads(bitnet("plan", tiny_gguf, "--draft", tiny_gguf, "--json").stdout)
    assert both["total"] == 2 * alone["total"] == 2 * both["draft"]["total"]


def test_the_table_names_every_part(bitnet: Bitnet, tiny_gguf: Path) -> None:
    text = bitnet("plan", tiny_gguf, "-c", 64).stdout
    for part in ("weights, ternary (2bit)", "cache, 64 tokens", "step, arena", "total", "available", "largest context"):
        assert part in text


def test_what_does_not_fit_ends_with_1(bitnet: Bitnet) -> None:
    line = ("plan", "--synthetic", "2B-4T", "--weights", "2bit", "-c", 4096, "--sequences", 100000)
    result = bitnet(*line)
    assert result.returncode == 1 and "GiB are free" in result.stderr and "fits    " in result.stdout
    assert bitnet(*line, "--force").returncode == 0


def test_of_a_real_shape_nothing_is_loaded(bitnet: Bitnet) -> None:
    line = ("plan", "--synthetic", "2B-4T", "--weights", "2bit", "--head", "full", "--json", "--force")
    found = json.loads(bitnet(*line).stdout)
    layers, scales = 2_084_044_800, 7 * 30
    assert found["weights"]["ternary"] == layers // 4 + 4 * scales
    assert found["weights"]["embedding"] == 128256 * 2560 * 2 and found["cache_per_token"] == 30 * 2 * 5 * 128 * 2


def test_what_is_not_here_is_not_fetched(bitnet: Bitnet, tmp_path: Path) -> None:
    result = bitnet("plan", "org/none", HF_HOME=str(tmp_path))
    assert result.returncode == 1 and "bitnet pull org/none" in result.stderr
