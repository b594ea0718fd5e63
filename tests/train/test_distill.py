"""What a teacher adds to the loss is what the paper's formulas say, written down in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from training_run import DESCRIPTION, counting

from bitnet.errors import ParameterError
from bitnet.train import checkpoint
from bitnet.train.distill import Distillation, Weights, divergence, relation_divergence
from bitnet.train.export import trained
from bitnet.train.model import TernaryLM, causal
from bitnet.train.quantizers import FLOAT
from bitnet.train.trainer import Plan, Trainer


def floats(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def pair(weights: Weights | None = None, layers: int = 4) -> Distillation:
    teacher = TernaryLM({**DESCRIPTION, "num_hidden_layers": layers}, FLOAT, dtype=torch.float32, seed=5)
    return Distillation(TernaryLM(DESCRIPTION, dtype=torch.float32), teacher, weights)


def test_logits_are_compared_as_the_paper_says() -> None:
    teacher, student, counts = floats(2, 5, 7, seed=0), floats(2, 5, 7, seed=1), torch.arange(10).view(2, 5) % 3 > 0
    p, q = (softmax(x.numpy().astype(np.float64) / 5) for x in (teacher, student))
    expected = ((p * np.log(p / q)).sum(-1) * counts.numpy()).sum()
    assert float(divergence(teacher, student, counts, 5.0)) == pytest.approx(expected, rel=1e-4)


def test_relations_are_compared_as_the_paper_says() -> None:
    """Also between models with other numbers and widths of heads."""
    rows, length, heads = 2, 6, 2
    teacher, student = floats(rows, 4, length, 8, seed=0), floats(rows, 2, length, 5, seed=1)
    counts = torch.arange(rows * length).view(rows, length) % 4 > 0
    expected = 0.0
    for row in range(rows):
        for t in range(length):
            if not counts[row, t]:
                continue
            for h in range(heads):
                found = []
                for x in (teacher, student):
                    joined = x[row].transpose(0, 1).reshape(length, heads, -1).numpy().astype(np.float64)
                    d = joined.shape[-1]
                    found.append(softmax(joined[: t + 1, h] @ joined[t, h] / np.sqrt(d)))
                expected += (found[0] * np.log(found[0] / found[1])).sum() / heads
    mask = causal(length, torch.device("cpu"))[None, None]
    assert float(relation_divergence(teacher, student, mask, counts, heads)) == pytest.approx(expected, rel=1e-4)


def test_a_student_that_is_its_teacher_has_only_the_cross_entropy() -> None:
    model = TernaryLM(DESCRIPTION, FLOAT, dtype=torch.float32)
    twin = TernaryLM(DESCRIPTION, FLOAT, dtype=torch.float32)
    batch = counting(8, 0).take(0, 4)
    both = Distillation(model, twin)
    assert both.loss(batch).item() == pytest.approx(model.loss(batch).item(), rel=1e-5)


def test_the_loss_is_the_sum_of_its_parts() -> None:
    batch = counting(8, 0).take(0, 4)
    parts = {name: pair(Weights(**weights)).loss(batch).item() for name, weights in {
        "none": {"logits": 0, "attention": 0}, "logits": {"logits": 1, "attention": 0},
        "attention": {"logits": 0, "attention": 1}, "all": {"logits": 2, "attention": 3},
    }.items()}  # fmt: skip
    added = parts["none"] + 2 * (parts["logits"] - parts["none"]) + 3 * (parts["attention"] - parts["none"])
    assert parts["all"] == pytest.approx(added, rel=1e-4)
    assert parts["logits"] > parts["none"] + 1 and parts["attention"] > parts["none"] + 1


def test_the_teachers_layer_is_at_the_same_depth() -> None:
    assert [pair(Weights(layer=layer)).teachers_layer for layer in (0, 1, -1)] == [1, 3, 3]


def test_a_distilled_student_nears_its_teacher_and_is_all_that_is_saved(tmp_path: Path) -> None:
    both = pair(Weights(logits=5, attention=1, temperature=1))
    before = [parameter.clone() for parameter in both.teacher.parameters()]
    trainer = Trainer(both, counting(64, 0), Plan(tmp_path, steps=25, rows=8, rows_at_once=4, log_every=1))
    first = trainer.train_step()
    trainer.run()
    batch = counting(64, 0).take(0, 8)
    assert both.loss(batch).item() / int((batch["targets"] >= 0).sum()) < 0.8 * first
    assert all(torch.equal(a, b) for a, b in zip(before, both.teacher.parameters(), strict=True))
    assert checkpoint.latest(tmp_path)["model"].keys() == TernaryLM(DESCRIPTION).state_dict().keys()
    torch.testing.assert_close(trained(tmp_path).loss(batch), both.evaluate(batch))


def test_models_that_cannot_be_compared_are_refused() -> None:
    student = TernaryLM(DESCRIPTION, dtype=torch.float32)
    with pytest.raises(ParameterError, match="knows 65 tokens, the student 64"):
        Distillation(student, TernaryLM({**DESCRIPTION, "vocab_size": 65}, FLOAT))
    with pytest.raises(ParameterError, match="There is no layer 2"):
        pair(Weights(layer=2))
    with pytest.raises(ParameterError, match="cut into 7"):
        pair(Weights(heads=7))
