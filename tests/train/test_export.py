"""What was trained is what is deployed: the exported files have the trainer's loss on held-out text."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from bitnet.formats import open as open_checkpoint
from bitnet.tokenizer import Tokenizer
from bitnet.train import builtin, corpus
from bitnet.train.batches import Rows
from bitnet.train.data import ID
from bitnet.train.export import TOKENIZER, export, type_of
from bitnet.train.model import TernaryLM
from bitnet.train.stories import stories
from bitnet.train.trainer import HeldOut, Plan, Trainer
from bitnet.train.vocabulary import END, END_OF_TURN, train_tokenizer, write_tokenizer

LENGTH = 48
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows, float]:
    """A run of the built-in recipe in miniature, its held-out rows and the loss on them that it ended with."""
    out = tmp_path_factory.mktemp("run")
    documents = [corpus.Document(story.text) for story in islice(stories(0), 60)]
    tokenizer = train_tokenizer((document.text for document in documents), 512)
    write_tokenizer(tokenizer, out / TOKENIZER)
    rows = np.stack(list(corpus.rows(documents, tokenizer, LENGTH)))
    held_out = Rows(rows[:12])
    model = TernaryLM({**builtin.DESCRIPTION, **SMALL, "vocab_size": 512})
    trainer = Trainer(model, Rows(rows[12:]), Plan(out, steps=12, rows=4), held_out=HeldOut(held_out, 12))
    trainer.run()
    said = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return out, held_out, next(each["held_out"] for each in said if each.get("final"))


def engine_loss(path: Path, held_out: Rows) -> float:
    """Nats per target, each document of the rows by itself, its keys and values cached in float32."""
    model, nats = tiny.load(path, "cpu"), []
    batch = held_out.take(0, 12)
    for ids, documents, targets in zip(batch["ids"], batch["documents"], batch["targets"]):
        for number in documents.unique():
            own = documents == number
            logits = tiny.logits(model, ids[own].tolist()).astype(np.float64)
            for row, target in zip(logits, targets[own].tolist()):
                if target >= 0:
                    nats.append(np.logaddexp.reduce(row) - row[target])
    return float(np.mean(nats))


@pytest.mark.parametrize(
    "options", [{"gguf": Path("a.gguf")}, {"folder": Path("a")}, {"gguf": Path("a.gguf"), "embeddings": "f32"}], ids=str
)
def test_the_exported_model_has_the_trainers_loss(options: dict[str, Any], run: Any, tmp_path: Path) -> None:
    out, held_out, loss = run
    placed = {name: tmp_path / value if isinstance(value, Path) else value for name, value in options.items()}
    notes = export(out, **placed)
    file = next(value for value in placed.values() if isinstance(value, Path))
    # What float16 takes from the embeddings; without it the loss in bfloat16 would be 4e-4 away.
    assert engine_loss(file, held_out) == pytest.approx(loss, abs=1e-4 if "embeddings" in options else 1e-3)
    assert bool(notes) == ("embeddings" not in options)  # float16 embeddings are said


def test_groups_go_into_the_longest_blocks_that_divide_them() -> None:
    assert [type_of(group) for group in ("tensor", "row", 64, 192, 128, 384, 512, 32)] == [
        "i2_s", "iq2_bn", "q2_0", "q2_0", "pq2_0", "pq2_0", "tq2_0", None
    ]  # fmt: skip


def test_the_exported_tokenizer_has_the_trained_ids_and_ends(run: Any, tmp_path: Path) -> None:
    out, held_out, _ = run
    export(out, gguf=tmp_path / "stories.gguf")
    with open_checkpoint(tmp_path / "stories.gguf") as opened:
        tokenizer = Tokenizer.from_checkpoint(opened)
        assert opened.metadata["tokenizer.ggml.pre"] == "llama-bpe"
    text = 'Once upon a time, there was a dog named Spot.\n"Hi!" said Zoë\'s cat.'
    trained = Tokenizer.from_folder(out / TOKENIZER)
    assert tokenizer.encode(text) == trained.encode(text)
    assert {END, END_OF_TURN} <= set(tokenizer.eos_ids)
    assert tokenizer.decode((held_out.words[0] & ID).tolist()) == trained.decode((held_out.words[0] & ID).tolist())
