"""A whole tuning: load the model, search, confirm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from bitnet import backends, models
from bitnet.bench.suite import model_type
from bitnet.formats.checkpoint import Checkpoint
from bitnet.machine.processor import model_name
from bitnet.models.load import Progress
from bitnet.tune.knobs import knobs
from bitnet.tune.meter import ModelMeter
from bitnet.tune.options import Options
from bitnet.tune.profile import Profile
from bitnet.tune.search import Clock, Outcome, Speed, Trial, confirm, search

CONFIRMING = 0.2  # of the time


@dataclass(frozen=True, slots=True)
class Tuning:
    outcome: Outcome
    trials: list[Trial]
    profile: Profile


def tune(
    checkpoint: Checkpoint,
    seconds: float,
    kv: str = "f16",
    force: bool = False,
    loading: Progress = lambda done, total: None,
    progress: Callable[[str], None] = lambda doing: None,
) -> Tuning:
    """Find the options that make this model fastest on this machine, in about `seconds` after it is loaded."""
    import bitnet._core as _core

    threads = _core.threads()
    try:
        model = models.load(checkpoint, backends.make("cpu"), loading, force)
        clock, start = Clock(seconds), Options()
        meter = ModelMeter(model, kv)
        best, trials = search(knobs(model), start, meter, clock.part((1 - CONFIRMING) * clock.left), progress)
        outcome = confirm(start, best, meter, clock, progress)
    finally:
        _core.set_threads(threads)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    measured = {"before": rates(outcome.before), "after": rates(outcome.after)}
    machine = f"{model_name()}, {_core.isa()}"
    return Tuning(outcome, trials, Profile(outcome.options, machine, model_type(checkpoint), made, measured))


def rates(speed: Speed) -> dict[str, Any]:
    return {"prompt_per_second": 1 / speed.prompt, "generated_per_second": 1 / speed.decode}
