"""A run learns, resumes where it was killed, ends when asked to, and its model runs the same when deployed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from bitnet.models.decoder import Config
from bitnet.train import trainer as training
from bitnet.train.optimizer import Schedule, orthogonalize
from bitnet.train.parameters import document_mask, targets_of
from bitnet.train.trainer import Plan, Trainer, TrainingDiverged
from bitnet.train.vocabulary import BEGIN, END

CONFIG = Config(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    vocab_size=64,
    max_position_embeddings=16,
    hidden_act="relu2",
)


def rows(count: int, seed: int) -> np.ndarray:
    """Windows that count upwards from a random number: easy to learn."""
    first = np.random.default_rng(seed).integers(3, 48, (count, 1))
    counted = first + np.arange(16)[None]
    counted[:, 0] = BEGIN
    return counted.astype(np.uint16)


def trainer(out: Path, steps: int = 12, **plan: object) -> Trainer:
    settings = Plan(out, rows=4, steps=steps, compile=False, log_every=1, save_every=1e9, evaluate_every=1e9)
    return Trainer(CONFIG, rows(256, 0), (rows(8, 1), 8 * 15), replace(settings, **plan))  # type: ignore[arg-type]


def losses(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def never_finite(weights: dict, *_: object) -> torch.Tensor:
    return torch.nan * sum(getattr(weight, "codes", weight).sum() for weight in weights.values())


def test_the_loss_falls(tmp_path: Path) -> None:
    trainer(tmp_path, steps=60).run()
    assert losses(tmp_path)[60] < 0.7 * losses(tmp_path)[1]


def test_a_killed_run_resumes_with_identical_losses(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").run()
    killed = trainer(tmp_path / "killed")
    killed.plan.out.mkdir()
    for _ in range(5):
        killed.train_step()
    killed.save()
    killed.train_step()  # lost
    trainer(tmp_path / "killed").run()
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "killed") == {step: loss for step, loss in whole.items() if step > 5}


def test_a_step_without_a_finite_loss_changes_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    before = {name: master.clone() for name, master in run.parameters.masters.items()}
    run.forward = lambda weights, *_: (
        sum(w.codes.sum() if hasattr(w, "codes") else w.sum() for w in weights.values()) * torch.nan
    )
    run.train_step()
    assert all(torch.equal(before[name], master) for name, master in run.parameters.masters.items())


def test_a_run_that_stays_without_a_finite_loss_stops(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=40)
    run.forward = lambda weights, *_: (
        sum(w.codes.sum() if hasattr(w, "codes") else w.sum() for w in weights.values()) * torch.nan
    )
    with pytest.raises(TrainingDiverged, match="No finite loss"):
        run.run()


def test_a_request_to_finish_starts_the_final_decay(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=100)
    for _ in range(10):
        run.train_step()
    run.seconds = 600.0  # a step a minute
    (tmp_path / training.FINISH).write_text("3")
    run.finish_if_asked()
    assert run.schedule.end == pytest.approx(13)
    assert not (tmp_path / training.FINISH).exists()


def test_the_rate_rises_holds_and_falls_to_zero() -> None:
    schedule = Schedule.over(1000)
    assert schedule.rate(0) < 0.1
    assert schedule.rate(300) == 1
    assert schedule.rate(750) == pytest.approx(0.5)
    assert schedule.rate(1000) == 0


def test_an_early_finish_falls_from_the_present_rate() -> None:
    schedule = Schedule.over(1000)
    schedule.finish(300, within=50)
    assert schedule.rate(300) == pytest.approx(1)
    assert schedule.rate(325) == pytest.approx(0.5)
    assert schedule.rate(350) == 0


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, 24, 48)).float())
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_a_token_looks_at_its_own_document_up_to_itself() -> None:
    mask = document_mask(torch.tensor([[BEGIN, 5, BEGIN, 6]]))[0, 0]
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_the_first_token_of_the_next_document_is_not_a_target() -> None:
    assert targets_of(torch.tensor([[BEGIN, 5, END, BEGIN, 6, END, END]])).tolist() == [
        [5, END, -100, 6, END, -100, -100]
    ]
