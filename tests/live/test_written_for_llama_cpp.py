"""llama.cpp opens what bitnet writes, in every type that both know, and computes the same model.

The two trained fixtures of tests/golden are written anew in each type; see test_llama_cpp.py there for the tolerances.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.convert import write_checkpoint
from bitnet.engine import LLM, EngineConfig, SamplingParams
from bitnet.engine.sampling import log_softmax
from bitnet.tokenizer import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp")
GOLDEN = Path(__file__).parent.parent / "golden"
WRITTEN = [
    ("bitnet-silu", "tq2_0", "f32"),
    ("bitnet-silu", "tq1_0", "bf16"),
    ("bitnet-silu", "tq2_0", "q8_0"),
    ("llama", "tq2_0", "f16"),
    ("llama", "tq1_0", "f32"),
]


def opened(path: Path, **options: Any) -> Any:
    return llama_cpp.Llama(
        str(path),
        n_ctx=256,
        n_threads=1,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
        flash_attn=False,
        **options,
    )


@pytest.fixture(params=WRITTEN, ids="-".join)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, weights, embeddings = request.param
    with formats.open(GOLDEN / f"{name}.gguf") as checkpoint:
        write_checkpoint(checkpoint, tmp_path / f"{name}.gguf", weights=weights, embeddings=embeddings)
    return tmp_path / f"{name}.gguf"


def test_the_likeliest_token_and_the_perplexity_are_those_of_llama_cpp(written: Path) -> None:
    passages = json.loads((GOLDEN / f"{written.stem}.json").read_text("utf-8"))["passages"][:4]
    theirs, ours = opened(written), tiny.load(written, "cpu" if tiny.usable_isas() else "reference")
    agree, difference = [], []
    for passage in passages:
        ids = passage["ids"]
        theirs.reset()
        theirs.eval(ids)
        both = [log_softmax(np.array(logits)) for logits in (tiny.logits(ours, ids), theirs.scores[: len(ids)])]
        agree.append(both[0].argmax(axis=1) == both[1].argmax(axis=1))
        difference.append((both[1] - both[0])[np.arange(len(ids) - 1), ids[1:]])
    assert np.concatenate(agree).mean() >= 0.95
    assert abs(np.concatenate(difference).mean()) <= np.log(1.02)


def test_greedy_text_begins_alike(written: Path) -> None:
    prompt = "Once there was a little"
    answer = opened(written).create_completion(prompt, max_tokens=8, temperature=0)["choices"][0]["text"]
    with formats.open(written) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
    llm = LLM(tiny.load(written), tokenizer, EngineConfig(kv="f32"))
    sequence = llm.add_request(tokenizer.encode(prompt), SamplingParams(max_tokens=8, temperature=0))
    text = "".join(output.text for output in llm.run([sequence]))
    assert len(answer) > 4
    assert text == answer
