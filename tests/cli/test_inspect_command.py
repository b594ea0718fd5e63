"""`bitnet inspect` on models that run and on some that do not."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bitnet.formats import TensorSpec, write_gguf
from bitnet.quant.tensor import DenseTensor

Bitnet = Callable[..., subprocess.CompletedProcess[str]]


def test_the_tables_show_metadata_tensors_and_totals(bitnet: Bitnet, tiny_gguf: Path) -> None:
    text = bitnet("inspect", tiny_gguf).stdout
    for part in ("general.architecture", "bitnet-b1.58", "blk.1.ffn_down.weight", "256 x 512", "TQ2_0", " entries)"):
        assert part in text
    assert "runs here        yes" in text and "\033" not in text


def test_json_has_the_same(bitnet: Bitnet, tiny_gguf: Path) -> None:
    found = json.loads(bitnet("inspect", tiny_gguf, "--json").stdout)
    tokens = found["metadata"]["tokenizer.ggml.tokens"]
    assert tokens["length"] > 256 and len(tokens["first"]) == 8
    assert found["parameters"] == sum(np.prod(t["shape"]) for t in found["tensors"])
    assert found["bytes"] == sum(t["bytes"] for t in found["types"])
    ternary = next(t for t in found["types"] if t["type"] == "TQ2_0")
    assert ternary["bits"] == 2.0625 and found["runs"] == "yes"


def test_the_histogram_counts_ternary_weights(bitnet: Bitnet, tiny_gguf: Path) -> None:
    shares = json.loads(bitnet("inspect", tiny_gguf, "--json", "--histogram").stdout)["histogram"]
    assert list(shares) == ["-1", "0", "+1"] and abs(sum(shares.values()) - 1) < 1e-12
    assert all(0.32 < share < 0.35 for share in shares.values())


def test_sha256_is_that_of_the_file(bitnet: Bitnet, tiny_gguf: Path) -> None:
    digest = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    assert json.loads(bitnet("inspect", tiny_gguf, "--json", "--sha256").stdout)["sha256"] == {tiny_gguf.name: digest}
    assert digest in bitnet("inspect", tiny_gguf, "--sha256").stdout


def test_an_unknown_architecture_is_shown_nevertheless(bitnet: Bitnet, tmp_path: Path) -> None:
    path = tmp_path / "strange.gguf"
    tensor = TensorSpec.of("a.weight", DenseTensor(np.zeros((2, 4), np.float32)), "F32")
    write_gguf(path, {"general.architecture": "strange", "x": float("nan"), "y": "\033[31m"}, [tensor])
    result = bitnet("inspect", path)
    assert result.returncode == 0 and "a.weight" in result.stdout and "'strange' is not supported" in result.stdout
    assert "\033" not in result.stdout
    assert json.loads(bitnet("inspect", path, "--json").stdout)["metadata"]["x"] == "nan"


def test_what_is_no_model_ends_with_3(bitnet: Bitnet, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"PK\x03\x04")
    assert bitnet("inspect", path).returncode == 3
