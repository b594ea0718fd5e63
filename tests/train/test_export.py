"""What was trained is what is deployed: the exported files give the training forward's logits."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from bitnet.backends.base import Step
from bitnet.backends.reference import Reference
from bitnet.backends.torch import Packed, TorchOps
from bitnet.formats import open as open_checkpoint
from bitnet.models import bitnet, load
from bitnet.models.decoder import Config
from bitnet.tokenizer import Tokenizer
from bitnet.train import checkpoint, data
from bitnet.train.export import write_folder, write_gguf_file
from bitnet.train.parameters import Parameters, TrainStep, document_mask
from bitnet.train.stories import stories
from bitnet.train.vocabulary import BEGIN, END, END_OF_TURN, train_tokenizer

CONFIG = Config(
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=512,
    max_position_embeddings=32,
    hidden_act="relu2",
)
IDS = [BEGIN, *range(40, 52)]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    train_tokenizer((s.text for s in islice(stories(0), 200)), CONFIG.vocab_size).save(str(out / "tokenizer.json"))
    checkpoint.save(out / "checkpoint.pt", CONFIG, Parameters(CONFIG, seed=3))
    return out


def trained_logits(out: Path) -> np.ndarray:
    config, parameters = checkpoint.load(out / "checkpoint.pt")
    ids = torch.tensor([IDS])
    step = TrainStep(ids[0], torch.arange(len(IDS)))
    ops = TorchOps(torch.float32, len(IDS), config.rope)
    with torch.no_grad():
        return bitnet.Model(config, parameters.refresh(torch.float32), ops)(step, Packed(1, document_mask(ids))).numpy()


@pytest.mark.parametrize(("write", "name"), [(write_folder, "stories"), (write_gguf_file, "stories.gguf")])
def test_the_exported_model_gives_the_trained_logits(write, name: str, out: Path, tmp_path: Path) -> None:
    write(out, tmp_path / name)
    with open_checkpoint(tmp_path / name) as opened:
        model = load(opened, Reference())
        logits = model(Step.whole(IDS), model.ops.new_cache(1, 1, 2, 64, "f32"))
    # The embedding is stored as float16. A single activation that rounds the other way is seen at about 0.05.
    np.testing.assert_allclose(logits, trained_logits(out), atol=0.1)
    assert np.abs(logits - trained_logits(out)).mean() < 0.03


def test_the_exported_tokenizer_has_the_trained_ids_and_ends(out: Path, tmp_path: Path) -> None:
    write_gguf_file(out, tmp_path / "stories.gguf")
    with open_checkpoint(tmp_path / "stories.gguf") as opened:
        tokenizer = Tokenizer.from_checkpoint(opened)
        assert opened.metadata["tokenizer.ggml.pre"] == "llama-bpe"
    trained = data.Tokenizer.from_file(str(out / "tokenizer.json"))
    text = 'Once upon a time, there was a dog named Spot.\n"Hi!" said Zoë\'s cat.'
    assert tokenizer.encode(text) == [BEGIN, *trained.encode(text).ids]
    assert {END, END_OF_TURN} <= set(tokenizer.eos_ids)
