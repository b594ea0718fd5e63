"""The training loop: any module with a loss, resumable to the bit, bounded by a budget, measured on held-out text."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from bitnet.errors import BitNetError, ParameterError
from bitnet.train import checkpoint
from bitnet.train.optimizer import Optimizers, Rates
from bitnet.train.parallel import Group, shared_like, whole
from bitnet.train.reporter import Reporter
from bitnet.train.schedule import Schedule

FINISH = "finish"  # a file of this name in the output folder, holding minutes, asks for the final decay now


class TrainingDiverged(BitNetError):
    """The loss stayed non-finite, also after going back to a checkpoint."""


class Stream(Protocol):
    """Rows without end, each known by its number."""

    def take(self, start: int, count: int) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, slots=True)
class HeldOut:
    """rows: how many of the stream. characters: that they spell, for bits per character; 0: unknown."""

    stream: Stream
    rows: int
    characters: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does. Exactly one of minutes and steps bounds it."""

    out: Path
    rows: int = 8  # windows in a step, on all processes together
    rows_at_once: int = 0  # in memory of a process; 0: all its rows
    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    compile: bool = False
    save_every: float = 300.0  # seconds
    keep: int = 2  # checkpoints
    evaluate_every: float = 600.0  # seconds
    log_every: int = 10  # steps
    patience: int = 10  # steps in succession without a finite loss
    tensorboard: bool = False
    shard: bool = False  # masters, gradients and optimizer states, over the processes

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ParameterError("A run is bounded by minutes or by steps: give one of them.")
        for name in ("rows", "minutes", "steps", "keep", "log_every"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ParameterError(f"{name} is {value}; expected a positive number.")
        for name in ("rows_at_once", "seed", "save_every", "evaluate_every", "patience"):
            if getattr(self, name) < 0:
                raise ParameterError(f"{name} is {getattr(self, name)}; expected 0 or more.")
        if self.compile and self.shard:
            raise ParameterError("compile and shard do not go together: give one of them.")

    @property
    def end(self) -> float:
        return float(self.steps) if self.steps is not None else 60 * (self.minutes or 0)

    @property
    def bound(self) -> str:
        return f"{self.end} {'seconds' if self.steps is None else 'steps'}"


class Trainer:
    """module: a `loss` of a batch (nats of all its targets together); and, where it has them, `step`, a context around
    the losses of one step, `in_float32`, one around losses as the engine computes them, and `blend`, how far its
    weights are rounded."""

    def __init__(
        self,
        module: nn.Module,
        stream: Stream,
        plan: Plan,
        *,
        rates: Rates | None = None,
        schedule: Schedule | None = None,
        held_out: HeldOut | None = None,
        group: Group | None = None,
    ) -> None:
        self.module: Any = module
        self.stream, self.plan, self.held_out = stream, plan, held_out
        self.group = group or Group()
        if plan.rows % self.group.size:
            raise ParameterError(f"{plan.rows} rows cannot be shared evenly by {self.group.size} processes.")
        self.module.to(self.group.device)
        self.sharded = plan.shard and self.group.size > 1
        if self.sharded:
            self.group.shard(self.module)
        self.optimizers = Optimizers(module, rates or Rates())
        self.schedule = schedule or Schedule(plan.end)
        loss: Any = self.module.loss
        fuses: Any = getattr(module, "fused", None)
        fused = fuses is not None and fuses(self.group.device)  # there is nothing left to compile
        self.loss: Any = torch.compile(loss, dynamic=False) if plan.compile and not fused else loss
        self.step, self.seconds, self.position = 0, 0.0, 0
        self.skipped, self.rollbacks = 0, 0
        self.tokens, self.asked, self.stopping = 0, False, False
        self.reporter: Reporter | None = None

    @property
    def clock(self) -> float:
        return self.step if self.plan.steps is not None else self.seconds

    def run(self) -> bool:
        """Train from wherever the last checkpoint left off; False where SIGTERM or Ctrl-C ended it before the end."""
        self.plan.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        if self.step and self.clock >= self.schedule.end:
            return True  # it was over already
        if self.group.rank == 0:
            self.reporter = Reporter(self.plan.out, self.schedule.end, self.plan.tensorboard)
            self.reporter.resume(self.step)
        try:
            with self.interruptible():
                self.train()
            if not self.stopping:
                with getattr(self.module, "in_float32", nullcontext)():
                    self.say(**self.evaluate(), final=True)
            self.save()
        finally:
            if self.reporter:
                self.reporter.close()
        return not self.stopping

    def train(self) -> None:
        saved = evaluated = self.seconds
        while self.clock < self.schedule.end and not self.stopping:
            loss = self.train_step()
            if self.step % self.plan.log_every == 0:
                self.say(
                    loss=round(loss, 6),
                    rate=round(self.schedule.rate(self.clock), 4),
                    tokens=self.tokens,
                    minutes=round(self.seconds / 60, 3),
                    **({"skipped": self.skipped} if self.skipped else {}),
                )
            self.finish_if_asked()
            if self.seconds - saved > self.plan.save_every:
                saved = self.seconds
                self.save()
            if self.seconds - evaluated > self.plan.evaluate_every:
                evaluated = self.seconds
                self.say(**self.evaluate())

    def train_step(self) -> float:
        """One update; a step whose loss or gradient is not finite changes nothing. Returns nats per target."""
        began = time.perf_counter()
        self.seed()
        batches = self.batches()
        count = sum((batch["targets"] >= 0).sum() for batch in batches).double()  # type: ignore[union-attr]
        self.group.add([count])
        self.set_blend()
        nats = torch.zeros((), device=self.group.device)
        parts = self.group.size if self.sharded else 1  # of which the gradients will be the mean, or the sum
        with self.held():
            for batch in batches:
                value = self.loss(batch)
                (value * parts / count.float().clamp(min=1)).backward()
                nats += value.detach().float()
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        said = torch.tensor([float(nats), float(self.asked), self.spent(began)], device=self.group.device)
        self.group.add([said] if self.sharded else [*gradients, said])
        total, stop, seconds = said.tolist()
        self.stopping = stop > 0  # all processes stop after the same step
        finite = math.isfinite(total) and bool(whole(nn.utils.get_total_norm(gradients)).isfinite())
        if finite:
            self.optimizers.step(self.schedule.rate(self.clock), self.schedule.decay(self.clock))
        self.module.zero_grad(set_to_none=True)
        self.step, self.seconds, self.position = self.step + 1, self.seconds + seconds, self.position + self.plan.rows
        self.tokens += int(count)
        self.skipped = 0 if finite else self.skipped + 1
        if self.skipped > self.plan.patience:
            self.roll_back()
        return total / max(float(count), 1.0)

    def spent(self, began: float) -> float:
        """Seconds of this step by the first process's clock, which holds for all."""
        return time.perf_counter() - began if self.group.rank == 0 else 0.0

    def seed(self) -> None:
        """A step draws from a generator of its own: there is no state of it to keep."""
        torch.manual_seed((self.plan.seed * 1_000_003 + self.step) * 4099 + self.group.rank)

    def batches(self) -> list[dict[str, Tensor]]:
        """This process's rows of the step, as many at once as the memory takes."""
        share = self.plan.rows // self.group.size
        first, most = self.position + self.group.rank * share, self.plan.rows_at_once or share
        starts = range(first, first + share, most)
        taken = [self.stream.take(start, min(most, first + share - start)) for start in starts]
        return [{name: tensor.to(self.group.device) for name, tensor in batch.items()} for batch in taken]

    def held(self) -> AbstractContextManager[None]:
        """Weights are quantised once for all parts of a step; where there is one part, its graph does it."""
        several = self.plan.rows_at_once not in (0, self.plan.rows // self.group.size)
        several = several and not self.sharded
        return self.module.step() if several and hasattr(self.module, "step") else nullcontext()

    def set_blend(self) -> None:
        share = self.schedule.rounding(self.clock)
        if hasattr(self.module, "blend"):
            self.module.blend = None if share >= 1 else torch.tensor(share, device=self.group.device)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Nats per target of the held-out rows, and bits per character where these are known."""
        held_out = self.held_out
        if held_out is None:
            return {}
        blend, share = getattr(self.module, "blend", None), max(1, self.plan.rows // self.group.size)
        if hasattr(self.module, "blend"):
            self.module.blend = None  # what will be deployed
        training = self.module.training
        self.module.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.group.device)
        for start in range(self.group.rank * share, held_out.rows, self.group.size * share):
            batch = held_out.stream.take(start, min(share, held_out.rows - start))
            batch = {name: tensor.to(self.group.device) for name, tensor in batch.items()}
            loss = self.module.evaluate if hasattr(self.module, "evaluate") else self.module.loss
            sums += torch.stack((loss(batch).double(), (batch["targets"] >= 0).sum().double()))
        self.group.add([sums])
        if self.sharded:
            self.module.reshard()
        self.module.train(training)
        if hasattr(self.module, "blend"):
            self.module.blend = blend
        found = {"held_out": round(float(sums[0] / sums[1]), 6)}
        if held_out.characters:
            found["bits_per_character"] = round(float(sums[0]) / math.log(2) / held_out.characters, 4)
        return found

    def save(self) -> None:
        model, optimizers = whole(dict(self.module.state_dict())), whole(self.optimizers.state())
        if self.group.rank == 0:
            about = self.module.about() if hasattr(self.module, "about") else {}
            state = {
                "about": about,
                "model": model,
                "optimizers": optimizers,
                "schedule": asdict(self.schedule),
                "bound": self.plan.bound,
                **{name: getattr(self, name) for name in RESUMED},
            }
            checkpoint.save(self.plan.out, self.step, state, self.plan.keep)
        self.group.wait()

    def resume(self) -> None:
        if checkpoint.found(self.plan.out):
            self.restore(checkpoint.latest(self.plan.out))

    def restore(self, state: dict[str, Any]) -> None:
        mine = self.module.state_dict()
        self.module.load_state_dict({name: shared_like(value, mine[name]) for name, value in state["model"].items()})
        self.optimizers.restore(state["optimizers"])
        if state.get("bound", self.plan.bound) == self.plan.bound:  # else the schedule is that of the new one
            self.schedule = Schedule(**state["schedule"])
        for name in RESUMED:
            setattr(self, name, state[name])

    def roll_back(self) -> None:
        """To the last checkpoint, but on with the rows that have not been seen."""
        position, rollbacks = self.position, self.rollbacks + 1
        paths = checkpoint.found(self.plan.out)
        if not paths or rollbacks > 2:
            raise TrainingDiverged(
                f"No finite loss in the last {self.skipped} steps, or no finite gradient, up to step {self.step}.",
                "Lower the learning rate, or look at the rows of data that these steps read.",
            )
        self.restore(checkpoint.load(paths[-1]))
        self.position, self.rollbacks, self.skipped = position, rollbacks, 0
        self.say(rolled_back_to=self.step)

    def finish_if_asked(self) -> None:
        request = self.plan.out / FINISH
        if self.group.size == 1 and request.exists():
            said = request.read_text().strip() or "10"
            request.unlink()
            try:
                minutes = float(said)
            except ValueError:
                self.say(finish_is_no_number=said)
                return
            within = minutes * 60 if self.plan.steps is None else minutes * 60 * self.step / max(self.seconds, 1e-9)
            self.schedule.finish(self.clock, within)
            self.say(finishing_in_minutes=minutes)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the run after the step, with a checkpoint; a second Ctrl-C at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _frame: object) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def say(self, **values: Any) -> None:
        if self.reporter and values:
            self.reporter.say(self.step, self.clock, **values)


RESUMED = ("step", "seconds", "position", "skipped", "rollbacks", "tokens")  # beside weights, optimizers and schedule
