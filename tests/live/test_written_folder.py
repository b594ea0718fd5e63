"""`transformers` opens the folders that are written here, and computes the same logits and tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

from bitnet import formats
from bitnet.convert import convert
from bitnet.convert.folder import write_folder

hf_folders = pytest.importorskip("hf_folders")  # needs torch and transformers
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

CASES, PROMPT = hf_folders.CASES, hf_folders.PROMPT
TOLERANCE = 2e-5


@pytest.mark.parametrize("name", CASES)
def test_a_converted_folder_is_the_same_model_to_transformers(name: str, tmp_path: Path) -> None:
    hf_folders.write(CASES[name], tmp_path / "source")
    with formats.open(tmp_path / "source") as checkpoint:
        write_folder(checkpoint, tmp_path / "packed", tokenizer=small_tokenizer())
    logits, tokens = hf_folders.run(tmp_path / "source", PROMPT, 16)
    theirs, greedy = hf_folders.run(tmp_path / "packed", PROMPT, 16)
    tiny.assert_same_logits(theirs, logits, TOLERANCE, name)
    tiny.assert_same_logits(tiny.logits(tiny.load(tmp_path / "packed"), PROMPT), theirs, TOLERANCE, name)
    convert(tmp_path / "packed", tmp_path / "m.gguf", weights="i2_s")
    convert(tmp_path / "m.gguf", tmp_path / "back")
    again, _ = hf_folders.run(tmp_path / "back", PROMPT, 1)
    tiny.assert_same_logits(again, logits, TOLERANCE, name)
    assert greedy == tokens


def test_transformers_reads_the_tokenizer(tmp_path: Path) -> None:
    write_folder(tiny.Synthetic(tiny.BITNET), tmp_path / "hf", tokenizer=tiny.tokenizer())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("the end", "  in an other\n", "naïve 😀"):
        assert theirs.encode(text) == tiny.tokenizer().encode(text)
        assert theirs.decode(theirs.encode(text), skip_special_tokens=True) == text


def small_tokenizer() -> tiny.Tokenizer:
    """Of 96 tokens, as many as the models have."""
    return tiny.Tokenizer.from_gguf(
        {
            "general.architecture": "tiny",
            "tiny.vocab_size": 96,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.tokens": [*map(chr, range(33, 127)), "th"],
            "tokenizer.ggml.merges": ["t h"],
        }
    )
