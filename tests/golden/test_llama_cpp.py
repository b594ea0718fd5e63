"""GGUF files that bitnet wrote mean the same here and in llama.cpp, which recorded its answers: see make_goldens.py.

llama.cpp rounds activations per 256 values and sums, we round them per token, as the models were trained. So logits
differ by about 0.1, and the likeliest token only where two are nearly as likely.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.engine.sampling import log_softmax
from bitnet.tokenizer import Tokenizer

FILES = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.gguf"))}
ARCHITECTURES = {"bitnet-silu": ("bitnet", "TQ2_0", "F16"), "llama": ("llama", "TQ1_0", "Q8_0")}
each_file = pytest.mark.parametrize("name", ARCHITECTURES)


@cache
def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILES[name].with_suffix(".json").read_text("utf-8"))
    return found


@cache
def tokenizer(name: str) -> Tokenizer:
    with formats.open(FILES[name]) as checkpoint:
        return Tokenizer.from_checkpoint(checkpoint)


@each_file
def test_the_files_are_what_they_are_meant_to_be(name: str) -> None:
    with formats.open(FILES[name]) as checkpoint:
        types = {n: info.dtype for n, info in checkpoint.tensors().items()}
    found = checkpoint.architecture, types["blk.0.ffn_down.weight"], types["token_embd.weight"]
    assert found == ARCHITECTURES[name]


@each_file
def test_texts_have_the_same_token_ids(name: str) -> None:
    for text, ids in recorded(name)["strings"]:
        assert tokenizer(name).encode(text) == ids, repr(text)
    for text, ids in recorded(name)["special"]:
        assert tokenizer(name).encode(text, add_special=False, parse_special=True) == ids, repr(text)
    for passage in recorded(name)["passages"]:
        assert tokenizer(name).encode(passage["text"])[: len(passage["ids"])] == passage["ids"]


@each_file
def test_the_likeliest_token_and_the_perplexity_are_those_of_llama_cpp(name: str) -> None:
    passages = recorded(name)["passages"]
    for backend, model in tiny.every_backend(lambda ops: tiny.load(FILES[name], ops)).items():
        with tiny.isa(backend):
            logits = [
                tiny.logits(model, passage["ids"]) for passage in passages[: 1 if backend == "reference" else None]
            ]
        agree, losses, theirs = [], [], []
        for found, passage in zip(logits, passages, strict=False):
            agree.append(found.argmax(axis=1) == passage["choices"])
            losses.append(-log_softmax(found)[np.arange(len(found) - 1), passage["ids"][1:]])
            theirs.append(passage["losses"])
        assert np.concatenate(agree).mean() >= 0.95, backend
        ratio = np.exp(np.concatenate(losses).mean() - np.concatenate(theirs).mean())
        assert 0.98 <= ratio <= 1.02, backend
