"""What a run says: lines of JSON, and the same for TensorBoard."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from training_run import trainer

from bitnet.errors import ParameterError
from bitnet.train.reporter import Reporter


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_shows_the_losses_of_the_log_also_after_a_restart(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer(tmp_path, steps=4, tensorboard=True).run()
    reporter = Reporter(tmp_path, 4, tensorboard=True)  # of a run that goes on from step 2 and loses 3 and 4
    reporter.resume(2)
    for step, loss in ((3, 7.0), (4, 6.0)):
        reporter.say(step, step, loss=loss)
    reporter.close()
    shown = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = [(line["step"], line["loss"]) for line in lines(tmp_path) if "loss" in line]
    assert [step for step, _ in written] == [1, 2, 3, 4]
    assert [(event.step, pytest.approx(event.value, rel=1e-6)) for event in shown.Scalars("loss")] == written


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    Reporter(tmp_path, 4).say(1, 1, loss=float("nan"), rate=0.5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "rate": 0.5}\n'


def test_tensorboard_that_is_not_installed_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ParameterError, match=r"tensorboard needs a package\.") as refused:
        Reporter(tmp_path, 4, tensorboard=True)
    assert refused.value.hint == "pip install tensorboard"
