"""`bitnet inspect` on models that run and on some that do not."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitnet.formats import TensorSpec, write_gguf
from bitnet.quant.tensor import DenseTensor, TernaryTensor

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


@pytest.mark.parametrize(
    "dtype, bits",  # of the formats' descriptions: bytes of a block, its weights, and a scale a row
    [
        ("Q1_0", 8 * 18 / 128),
        ("Q2_0", 8 * 18 / 64),
        ("PQ2_0", 8 * 34 / 128),
        ("PTQ1_0", 8 * 28 / 128),
        ("TQ1_0", 8 * 54 / 256),
        ("TQ2_0", 8 * 66 / 256),
        ("IQ1_BN", 8 * 13 / 64 + 16 / 256),
        ("IQ2_BN", 8 * 16 / 64 + 32 / 256),
        ("I2_S", 2 + 8 * 32 / (4 * 256)),
    ],
)
def test_every_ternary_type_is_counted(bitnet: Bitnet, tmp_path: Path, dtype: str, bits: float) -> None:
    codes = np.array([-1, 1, 1, 1] if dtype == "Q1_0" else [-1, 0, 1, 1], np.int8)
    tensor = TernaryTensor(np.tile(codes, (4, 64)), np.float32(0.5).reshape(()))
    path = tmp_path / "codes.gguf"
    write_gguf(path, {"general.architecture": "llama"}, [TensorSpec.of("a.weight", tensor, dtype)])
    found = json.loads(bitnet("inspect", path, "--json", "--histogram", "--sha256").stdout)
    zeros = 0 if dtype == "Q1_0" else 0.25
    assert found["histogram"] == {"-1": 0.25, "0": zeros, "+1": 0.75 - zeros}
    assert found["types"][0]["type"] == dtype and found["bits_per_weight"] == found["types"][0]["bits"] == bits
    assert found["sha256"] == {"codes.gguf": hashlib.sha256(path.read_bytes()).hexdigest()}


@pytest.mark.parametrize("dtype, bits", [("Q4_K", 4.5), ("Q6_K", 6.5625), ("Q8_0", 8.5), ("F16", 16)])
def test_the_types_of_embeddings_have_their_bits(bitnet: Bitnet, tmp_path: Path, dtype: str, bits: float) -> None:
    tensor = DenseTensor(np.linspace(-1, 1, 2048, dtype=np.float32).reshape(4, 512))
    path = tmp_path / "table.gguf"
    write_gguf(path, {"general.architecture": "llama"}, [TensorSpec.of("a.weight", tensor, dtype)])
    found = json.loads(bitnet("inspect", path, "--json", "--histogram").stdout)
    assert found["bits_per_weight"] == bits and found["histogram"] == {}


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


def test_a_type_that_is_not_read_is_said(bitnet: Bitnet, tiny_gguf: Path, tmp_path: Path) -> None:
    numbered = {"F16": (1).to_bytes(4, "little"), "IQ4_NL": (20).to_bytes(4, "little")}
    data, name = tiny_gguf.read_bytes(), b"token_embd.weight"
    at = data.index(numbered["F16"], data.index(name) + len(name) + 4 + 16)  # behind the number and sizes of dimensions
    (tmp_path / "m.gguf").write_bytes(data[:at] + numbered["IQ4_NL"] + data[at + 4 :])
    assert "no: tensors in IQ4_NL are not read." in bitnet("inspect", tmp_path / "m.gguf").stdout


def test_what_is_no_model_ends_with_3(bitnet: Bitnet, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"PK\x03\x04")
    assert bitnet("inspect", path).returncode == 3
