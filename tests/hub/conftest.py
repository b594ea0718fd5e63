"""A hub of our own and an empty cache; nothing here reaches the network."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stand_in import StandIn, stand_in
from safetensors.numpy import save
from small_tokenizers import gpt2
from tiny import BITNET, random_weights


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "BITNET_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with stand_in() as server:
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(scope="session")
def folder() -> dict[str, bytes]:
    """The files of a Hugging Face folder that runs."""
    config = {**BITNET, "vocab_size": gpt2().get_vocab_size()}
    weights = {name: tensor.dequantize() for name, tensor in random_weights(config).items()}
    tokenizer = {"eos_token": "<|endoftext|>", "chat_template": "{{ messages[0]['content'] }}"}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(weights),
        "tokenizer.json": gpt2().to_str().encode(),
        "tokenizer_config.json": json.dumps(tokenizer).encode(),
    }
