"""How long a user waits: for the first token, and for each one after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from bitnet.bench.conditions import Disturbance, warnings
from bitnet.bench.machine import cpu_info, use_threads
from bitnet.bench.speed import Sample, Test
from bitnet.bench.suite import Plan, loaded, rounds
from bitnet.errors import ParameterError
from bitnet.formats import Checkpoint
from bitnet.models.load import Progress

BINS, BAR = 16, 40  # rows of a histogram, and the letters of its longest bar


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(np.mean(values)), *map(float, np.percentile(values, (50, 95, 99, 100))))


@dataclass(frozen=True, slots=True)
class Latency:
    """Of one test. first_ms: of each repetition, from the start of its prompt to the logits of the first new token.
    token_ms: of every later token of all repetitions, in their order."""

    model: str
    engine: str
    isa: str
    cpu_info: str
    threads: int
    test: str
    first_ms: tuple[float, ...]
    token_ms: tuple[float, ...]
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Spread:
        return Spread.of(self.first_ms)

    @property
    def token(self) -> Spread:
        return Spread.of(self.token_ms)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "first_token": asdict(self.first), "token": asdict(self.token)}


def measure(
    checkpoint: Checkpoint, plan: Plan, loading: Progress, progress: Callable[[str], None] = lambda doing: None
) -> Iterator[Latency]:
    """plan.tests: such as read a prompt and generate after it. Raises ParameterError where the plan makes no sense."""
    plan.check()
    if any(test.n_gen < 2 for test in plan.tests):
        raise ParameterError("Latencies are of tokens that are generated, at least two.", "Give their number: -n 128")
    use_threads(plan.backend, max(plan.threads))
    cases = [(use_threads(plan.backend, threads), test) for threads in plan.threads for test in plan.tests]
    notes: list[str] = []
    with ExitStack() as stack:
        engines = loaded(checkpoint, plan, loading, stack, notes.append)
        disturbance = Disturbance()
        samples = rounds(engines, cases, plan, progress, notes.append)
        notes += warnings(disturbance.shares(), {})
    name = checkpoint.path.name.removeprefix("synthetic-")
    for (engine, (threads, test)), found in samples.items():
        facts = engine.facts
        yield Latency(
            name, facts.engine, facts.isa, cpu_info(), threads, test.name, *milliseconds(test, found), tuple(notes)
        )


def milliseconds(test: Test, samples: Sequence[Sample]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of first tokens, and of the later ones: the prompt gives the first; without one the first step does."""
    first = tuple(sample.first_ns / 1e6 for sample in samples)
    later = tuple(ns / 1e6 for sample in samples for ns in sample.token_ns[0 if test.n_prompt else 1 :])
    return first, later


def bins(values: Sequence[float]) -> tuple[list[float], list[int]]:
    """Edges (n + 1) and counts (n) of a histogram in equal ratios: a few that took ten times as long do not press all
    others into one."""
    low, high = min(values), max(values)
    edges: list[float] = np.geomspace(low, high, BINS + 1).tolist() if high > low else [low, low]
    edges[0], edges[-1] = low, high  # not their logarithms' rounding
    counts, _ = np.histogram(values, edges)
    return edges, counts.tolist()


def histogram(values: Sequence[float]) -> Iterator[str]:
    """A line a bin, for a terminal."""
    edges, counts = bins(values)
    digits = 2 if edges[-1] >= 1 else 4
    most, width = max(counts), len(f"{edges[-1]:.{digits}f}")
    for (low, high), count in zip(pairwise(edges), counts, strict=True):
        bar = "█" * -(-count * BAR // most)
        yield f"{low:{width}.{digits}f} – {high:{width}.{digits}f} ms  {bar:{BAR}}  {count:,}".rstrip()
