"""The pretraining loop: resumable to the step, bounded by a budget, measured on held-out text."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet.backends.torch import TorchOps
from bitnet.models.decoder import Config
from bitnet.train import checkpoint
from bitnet.train.optimizer import Optimizer, Schedule
from bitnet.train.parameters import Parameters, document_mask, loss, targets_of
from bitnet.train.vocabulary import END

Rows = NDArray[np.uint16]
CHECKPOINT = "checkpoint.pt"
FINISH = "finish"  # a file of this name in the output folder, holding minutes, asks for the final decay now


class TrainingDiverged(RuntimeError):
    """The loss stayed non-finite; resume from an older checkpoint or lower the learning rate."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does. Exactly one of minutes and steps bounds it."""

    out: Path
    rows: int = 8  # windows in a step
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    compile: bool = True
    save_every: float = 300.0  # seconds
    evaluate_every: float = 600.0
    log_every: int = 10


class Trainer:
    """data: token rows (N, length). held_out: rows to measure on, and the characters that they spell."""

    def __init__(self, config: Config, data: Rows, held_out: tuple[Rows, int], plan: Plan) -> None:
        self.config, self.data, self.held_out, self.plan = config, data, held_out, plan
        self.dtype = torch.bfloat16
        self.ops = TorchOps(self.dtype, positions=data.shape[1], rope=config.rope)
        self.parameters = Parameters(config, plan.seed)
        self.optimizer = Optimizer(self.parameters.masters)
        self.schedule = Schedule.over(plan.steps if plan.steps is not None else 60 * (plan.minutes or 0))
        self.step, self.seconds, self.skipped = 0, 0.0, 0
        function: Callable[..., Tensor] = self.loss
        self.forward = torch.compile(function, dynamic=False) if plan.compile else function

    def loss(self, weights: dict[str, Any], ids: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        return loss(self.config, self.ops, weights, ids, targets, mask)

    @property
    def clock(self) -> float:
        return self.step if self.plan.steps is not None else self.seconds

    def run(self) -> None:
        """Train from wherever the last checkpoint left off until the schedule ends."""
        self.plan.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        saved = evaluated = self.seconds
        while self.clock < self.schedule.end:
            began = time.perf_counter()
            value = self.train_step()
            self.seconds += time.perf_counter() - began
            if self.step % self.plan.log_every == 0:
                tokens = self.step * self.plan.rows * self.data.shape[1]
                self.log(loss=round(value, 4), rate=round(self.schedule.rate(self.clock), 4), tokens=tokens)
            self.finish_if_asked()
            if self.seconds - saved > self.plan.save_every:
                saved = self.seconds
                self.save()
            if self.seconds - evaluated > self.plan.evaluate_every:
                evaluated = self.seconds
                self.log(bits_per_character=round(self.evaluate(), 4))
        self.save()
        self.log(bits_per_character=round(self.evaluate(), 4), final=True)

    def train_step(self) -> float:
        """One update; a step whose loss or gradient is not finite changes nothing."""
        weights = self.parameters.refresh(self.dtype)
        ids = self.batch()
        value = self.forward(weights, ids, targets_of(ids), document_mask(ids))
        value.backward()  # type: ignore[no-untyped-call]
        gradients = self.parameters.gradients()
        finite = bool(torch.isfinite(value)) and all(bool(torch.isfinite(g).all()) for g in gradients.values())
        if finite:
            self.optimizer.update(gradients, self.schedule.rate(self.clock), not self.schedule.falling(self.clock))
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped > 10:
            raise TrainingDiverged(f"No finite loss in the last {self.skipped} steps, up to step {self.step}.")
        self.step += 1
        return float(value.detach())

    def batch(self) -> Tensor:
        """The step's rows (rows, length): the data in order, from the start again after its end."""
        at = np.arange(self.step * self.plan.rows, (self.step + 1) * self.plan.rows) % len(self.data)
        return torch.from_numpy(self.data[at].astype(np.int64))

    @torch.no_grad()
    def evaluate(self) -> float:
        """Bits per character of the held-out text, its document ends included."""
        rows, characters = self.held_out
        weights = self.parameters.refresh(self.dtype)
        nats = 0.0
        for start in range(0, len(rows), self.plan.rows):
            ids = torch.full((self.plan.rows, rows.shape[1]), END)
            piece = torch.from_numpy(rows[start : start + self.plan.rows].astype(np.int64))
            ids[: len(piece)] = piece
            targets = targets_of(ids)
            nats += float(self.forward(weights, ids, targets, document_mask(ids))) * int((targets >= 0).sum())
        return nats / float(np.log(2)) / characters

    def finish_if_asked(self) -> None:
        request = self.plan.out / FINISH
        if request.exists():
            minutes = float(request.read_text() or 10)
            request.unlink()
            within = minutes * 60 if self.plan.steps is None else minutes * 60 * self.step / max(self.seconds, 1e-9)
            self.schedule.finish(self.clock, within)
            self.log(finishing_in_minutes=minutes)

    def save(self) -> None:
        checkpoint.save(
            self.plan.out / CHECKPOINT, self.config, self.parameters, optimizer=self.optimizer.state(),
            schedule=asdict(self.schedule), step=self.step, seconds=self.seconds,
        )  # fmt: skip

    def resume(self) -> None:
        path = self.plan.out / CHECKPOINT
        if not path.exists():
            return
        state = checkpoint.load_state(path)
        self.parameters.masters.update(state["masters"])
        self.optimizer.restore(state["optimizer"])
        self.schedule = Schedule(**state["schedule"])
        self.step, self.seconds = state["step"], state["seconds"]

    def log(self, **values: Any) -> None:
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2), **values}
        with (self.plan.out / "metrics.jsonl").open("a") as file:
            print(json.dumps(line), file=file)
        print(json.dumps(line), flush=True)
