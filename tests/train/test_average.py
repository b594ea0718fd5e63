"""The mean of runs is NumPy's of their masters, and a run that can be exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from bitnet.errors import ParameterError
from bitnet.train import builtin, checkpoint
from bitnet.train.average import average, parse
from bitnet.train.export import TOKENIZER, trained
from bitnet.train.model import TernaryLM

SHAPE = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32}


def run(path: Path, seed: int, **shape: int) -> Path:
    model = TernaryLM({**builtin.DESCRIPTION, **SHAPE, "vocab_size": 64, **shape}, seed=seed)
    (path / TOKENIZER).mkdir(parents=True)
    (path / TOKENIZER / "tokenizer.json").write_text(str(seed))
    checkpoint.save(path, 7, {"about": model.about(), "model": model.state_dict()}, keep=1)
    return path


def test_masters_are_averaged_by_their_weights(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", 1), run(tmp_path / "a=b", 2)
    average(dict([parse(f"{one}=0.25"), parse(f"{two}=0.75")]), tmp_path / "mean")
    mean, first, second = (trained(path) for path in (tmp_path / "mean", one, two))
    for name in mean.shapes:
        masters = (model.master(name).detach().numpy().astype(np.float64) for model in (first, second))
        expected = np.average(list(masters), axis=0, weights=(0.25, 0.75))
        np.testing.assert_allclose(mean.master(name).detach().numpy(), expected, atol=1e-6)
    assert (tmp_path / "mean" / TOKENIZER / "tokenizer.json").read_text() == "1"


def test_other_models_and_weights_are_refused(tmp_path: Path) -> None:
    one, other = run(tmp_path / "one", 1), run(tmp_path / "other", 1, num_hidden_layers=2)
    with pytest.raises(ParameterError, match="another model"):
        average({one: 0.5, other: 0.5}, tmp_path / "mean")
    with pytest.raises(ParameterError, match=r"add up to 1\.5"):
        average({one: 0.5, other: 1.0}, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
