"""A run learns, resumes where it was killed, shares its work, and ends when asked to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

import training_run
from training_run import trainer

from bitnet.errors import FormatError, ParameterError
from bitnet.train import checkpoint
from bitnet.train import trainer as training
from bitnet.train.optimizer import Optimizers, Rates, orthogonalize
from bitnet.train.schedule import Schedule
from bitnet.train.trainer import Plan, TrainingDiverged


def losses(out: Path) -> dict[int, float]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def parameters(run: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.module.named_parameters()}


def trained_parameters(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.latest(out)["model"]


def start(out: Path, steps: int, *settings: str, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, training_run.__file__, str(out), str(steps), *settings]
    quiet = {"OMP_NUM_THREADS": "1", **os.environ, **environment}
    return subprocess.Popen(command, env=quiet, stdout=subprocess.DEVNULL)


def wait_for(condition: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_the_loss_falls(tmp_path: Path) -> None:
    assert trainer(tmp_path, steps=60).run()
    found = losses(tmp_path)
    assert found[60] < 0.6 * found[1]
    final = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert final["final"] and final["held_out"] < 0.7 * found[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 100 steps that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole")
    trainer(out, steps=100, rows=4).run()
    return out


@pytest.mark.parametrize(("number", "save_every"), [(signal.SIGKILL, 0), (signal.SIGTERM, 1e9)])
def test_a_run_that_was_ended_goes_on_with_the_identical_curve(
    number: signal.Signals, save_every: float, whole: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, 100, f"save_every={save_every}", "rows=4")
    wait_for(lambda: checkpoint.found(tmp_path) if number == signal.SIGKILL else (tmp_path / "metrics.jsonl").exists())
    process.send_signal(number)
    assert process.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 3)
    assert 0 < int(checkpoint.found(tmp_path)[-1].stem[-8:]) < 100
    assert start(tmp_path, 100, "save_every=1e9", "rows=4").wait(120) == 0
    assert losses(tmp_path) == losses(whole)
    there, here = trained_parameters(whole), trained_parameters(tmp_path)
    assert all(torch.equal(there[name], here[name]) for name in there)


def start_two(out: Path, *settings: str) -> None:
    """A run of five steps by two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [start(out, 5, *settings, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in (0, 1)]
    assert [process.wait(300) for process in both] == [0, 0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five steps by one process. AdamW: Muon's Newton-Schulz in bf16 amplifies the last bits of a sum."""
    out = tmp_path_factory.mktemp("alone")
    trainer(out, steps=5, rates=Rates("adamw")).run()
    return out


@pytest.mark.parametrize("settings", [["adamw=1"], ["adamw=1", "shard=1"]], ids=["ddp", "fsdp"])
def test_two_processes_train_what_one_trains_with_the_same_rows(
    settings: list[str], alone: Path, tmp_path: Path
) -> None:
    start_two(tmp_path, *settings)
    one, two = losses(alone), losses(tmp_path)
    assert one.keys() == two.keys()
    assert all(one[step] == pytest.approx(two[step], abs=1e-4) for step in one)
    for name, value in trained_parameters(alone).items():
        torch.testing.assert_close(trained_parameters(tmp_path)[name], value, rtol=0, atol=2e-4, msg=name)


def test_processes_that_share_the_weights_go_on_from_a_checkpoint_with_muon(tmp_path: Path) -> None:
    """The checkpoint is whole: the same file as without sharing, for any number of processes."""
    start_two(tmp_path / "whole", "shard=1", "save_every=0", "keep=9", "rows_at_once=2")
    start_two(tmp_path / "ddp", "rows_at_once=2")
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "whole" / "checkpoint-00000003.pt", tmp_path / "part")
    start_two(tmp_path / "part", "shard=1", "rows_at_once=2")
    whole, ddp = trained_parameters(tmp_path / "whole"), trained_parameters(tmp_path / "ddp")
    assert {name: value.shape for name, value in whole.items()} == {name: value.shape for name, value in ddp.items()}
    assert losses(tmp_path / "whole")[1] == pytest.approx(losses(tmp_path / "ddp")[1], abs=1e-5)
    assert losses(tmp_path / "whole")[5] == pytest.approx(losses(tmp_path / "ddp")[5], rel=0.02)
    assert all(torch.equal(value, trained_parameters(tmp_path / "part")[name]) for name, value in whole.items())


def test_compiling_and_sharing_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="compile and shard do not go together"):
        Plan(tmp_path, steps=1, compile=True, shard=True)


@pytest.mark.parametrize("rows_at_once", [1, 3, 4])
def test_parts_of_a_step_add_up_to_the_whole(rows_at_once: int, tmp_path: Path) -> None:
    whole, parts = trainer(tmp_path / "whole"), trainer(tmp_path / "parts", rows_at_once=rows_at_once)
    for run in (whole, parts):
        run.module.zero_grad = lambda set_to_none=True: None
    assert whole.train_step() == pytest.approx(parts.train_step(), abs=1e-5)
    for a, b in zip(whole.module.parameters(), parts.module.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5)


def test_a_step_without_a_finite_loss_changes_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    before = parameters(run)
    run.loss = lambda batch: sum(p.sum() for p in run.module.parameters()) * torch.nan
    run.train_step()
    assert all(torch.equal(before[name], parameter) for name, parameter in parameters(run).items())
    assert (run.step, run.position, run.skipped) == (1, 8, 1)


def test_a_run_without_a_finite_loss_goes_back_and_skips_the_rows(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=40, patience=3)
    run.plan.out.mkdir(exist_ok=True)
    for _ in range(5):
        run.train_step()
    run.save()
    good, sound = parameters(run), run.loss
    run.loss = lambda batch: sum(p.sum() for p in run.module.parameters()) * torch.nan
    for _ in range(4):
        run.train_step()
    assert (run.step, run.rollbacks, run.position) == (5, 1, 9 * 8)
    assert all(torch.equal(good[name], parameter) for name, parameter in parameters(run).items())
    run.loss = sound
    assert run.train_step() < 10


def test_a_run_that_stays_without_a_finite_loss_stops(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=80, patience=2)
    run.loss = lambda batch: sum(p.sum() for p in run.module.parameters()) * torch.nan
    with pytest.raises(TrainingDiverged, match="No finite loss in the last 3 steps"):
        run.run()


def test_only_the_last_checkpoints_stay_and_a_torn_one_is_named(tmp_path: Path) -> None:
    run = trainer(tmp_path, keep=2)
    for _ in range(4):
        run.train_step()
        run.save()
    assert [path.stem for path in checkpoint.found(tmp_path)] == ["checkpoint-00000003", "checkpoint-00000004"]
    last = checkpoint.found(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:500])
    with pytest.raises(FormatError, match="checkpoint-00000004.pt is no checkpoint"):
        trainer(tmp_path).resume()


def test_a_run_that_was_over_goes_on_when_more_steps_are_asked_for(tmp_path: Path) -> None:
    assert trainer(tmp_path, steps=4).run()
    more = trainer(tmp_path, steps=9)
    assert more.run() and more.step == 9 and more.schedule.end == 9
    assert sorted(losses(tmp_path)) == list(range(1, 10))
    again = trainer(tmp_path, steps=9)
    assert again.run() and again.step == 9


def test_a_request_that_is_no_number_ends_nothing(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=100)
    (tmp_path / training.FINISH).write_text("soon")
    run.finish_if_asked()
    assert run.schedule.end == 100 and not (tmp_path / training.FINISH).exists()


def test_a_request_to_finish_starts_the_final_decay(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=100)
    for _ in range(10):
        run.train_step()
    run.seconds = 600.0  # a step a minute
    (tmp_path / training.FINISH).write_text("3")
    run.finish_if_asked()
    assert run.schedule.end == pytest.approx(13)
    assert not (tmp_path / training.FINISH).exists()


def test_a_plan_has_one_bound(tmp_path: Path) -> None:
    for bounds in ({}, {"minutes": 1.0, "steps": 3}):
        with pytest.raises(ParameterError, match="minutes or by steps"):
            Plan(tmp_path, **bounds)


def test_the_trapezoid_rises_holds_and_falls_to_zero() -> None:
    schedule = Schedule(1000)
    assert [round(schedule.rate(clock), 2) for clock in (0, 300, 750, 1000)] == [0.06, 1, 0.5, 0]
    assert [schedule.decay(clock) for clock in (0, 499, 501)] == [1, 1, 0]


def test_two_stages_are_those_of_the_report() -> None:
    schedule = Schedule(1000, "two-stage", rise=0)
    peaks = [1.5e-3 * schedule.rate(clock) for clock in (0, 499.999, 500.001, 1000)]
    assert peaks == pytest.approx([1.5e-3, 8e-4, 5e-4, 0], rel=1e-4)
    assert [schedule.decay(clock) for clock in (499, 501)] == [1, 0]


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_rate_falls_to_zero_by_half_in_the_middle(kind: Any) -> None:
    assert [round(Schedule(100, kind, rise=0).rate(clock), 3) for clock in (0, 50, 100)] == [1, 0.5, 0]


def test_rounding_grows_over_its_share_of_the_run() -> None:
    schedule = Schedule(100, blend=0.2)
    assert [schedule.rounding(clock) for clock in (0, 9, 19, 50)] == [0.05, 0.5, 1, 1]
    assert Schedule(100).rounding(0) == 1


def test_an_early_finish_falls_from_the_present_rate() -> None:
    schedule = Schedule(1000)
    schedule.finish(300, within=50)
    assert [round(schedule.rate(clock), 3) for clock in (300, 325, 350)] == [1, 0.5, 0]


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(2, 24, 48)).float())
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_muon_takes_the_hidden_matrices_and_adam_the_rest(tmp_path: Path) -> None:
    model = trainer(tmp_path).module
    muon, adam = Optimizers(model, Rates()).all
    by_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    assert by_muon == {id(p) for name, p in model.named_parameters() if name.endswith("_proj.weight")}
    rest = {id(p) for p in model.parameters()} - by_muon
    assert {id(p) for group in adam.param_groups for p in group["params"]} == rest
