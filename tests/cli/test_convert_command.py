"""`bitnet convert` from the shell."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Bitnet = Callable[..., subprocess.CompletedProcess[str]]


def test_a_file_becomes_a_folder_and_a_file_again(bitnet: Bitnet, tiny_gguf: Path, tmp_path: Path) -> None:
    result = bitnet("convert", tiny_gguf, tmp_path / "hf", "--verify")
    assert result.returncode == 0 and "Passed." in result.stdout and result.stderr == ""
    assert "Passed." in (tmp_path / "hf.verify.md").read_text("utf-8")
    result = bitnet("convert", tmp_path / "hf", tmp_path / "m.gguf", "--type", "tq2_0", "--verify", "--json")
    found = json.loads(result.stdout)
    assert found["lossless"] and found["verify"]["passed"] and found["verify"]["difference"] == 0
    assert found["types"] == {"TQ2_0": 14, "F32": 9, "F16": 1}


def test_what_exists_and_what_is_unknown_are_usage_errors(bitnet: Bitnet, tiny_gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"mine")
    for arguments in ([], ["--force", "--type", "q9"], ["--force", "--head", "q1"], ["--to", "onnx", "--force"]):
        result = bitnet("convert", tiny_gguf, tmp_path / "m.gguf", *arguments)
        assert result.returncode == 2 and result.stderr.startswith("error: ")
    assert [each.name for each in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"mine"


def test_what_is_no_model_ends_with_3(bitnet: Bitnet, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert bitnet("convert", tmp_path / "a.gguf", tmp_path / "b.gguf").returncode == 3
