"""A deepened model says at first nearly what the shallow one does, and its masters can move."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from bitnet.convert.folder import write_folder
from bitnet.errors import ParameterError
from bitnet.train import builtin
from bitnet.train.deepen import deepened
from bitnet.train.export import deployed_checkpoint
from bitnet.train.model import TernaryLM
from bitnet.train.quantizers import ternarize

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32}
IDS = torch.arange(40)[None] % 37


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "shallow"
    model = TernaryLM({**builtin.DESCRIPTION, **SHAPE, "vocab_size": 64}, dtype=torch.float32, seed=3)
    write_folder(deployed_checkpoint(model, path), path, embeddings="f32")
    return path


def test_of_the_same_depth_its_codes_and_scales_are_the_same(shallow: Path) -> None:
    model, first = deepened(shallow, 2, dtype=torch.float32), TernaryLM.from_pretrained(shallow, dtype=torch.float32)
    for name in model.projections():
        (codes, scale), (own, before) = (ternarize(m.master(name).detach(), m.recipe.rule) for m in (model, first))
        assert (codes != own).float().mean() < 0.01 and float(scale) == pytest.approx(float(before), rel=0.02), name
        assert len(first.master(name).unique()) <= 3 < len(model.master(name).unique())


@torch.no_grad()
def test_more_layers_change_little_at_first(shallow: Path) -> None:
    first = TernaryLM.from_pretrained(shallow, dtype=torch.float32)
    model, other = deepened(shallow, 4, dtype=torch.float32), TernaryLM(first.description, dtype=torch.float32, seed=9)
    assert len({name.split(".")[1] for name in model.projections()}) == 4
    said, before, random = (m(IDS) for m in (model, first, other))
    assert (said - before).norm() < 0.35 * before.norm() < 0.7 * (random - before).norm()


def test_fewer_layers_are_refused(shallow: Path) -> None:
    with pytest.raises(ParameterError, match="2 layers"):
        deepened(shallow, 1)
