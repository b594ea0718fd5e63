"""`bitnet bench --latency` and `--memory`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet.cli.loading import Progress, StatusLine
from bitnet.errors import ParameterError

if TYPE_CHECKING:
    from bitnet.bench.latency import Latency
    from bitnet.bench.suite import Plan
    from bitnet.formats import Checkpoint

Measure = Callable[..., Iterator[Any]]


def show_latency(checkpoints: list[Checkpoint], plan: Plan, output: str, plot: Path | None) -> None:
    from bitnet.bench import latency_report
    from bitnet.bench.latency import measure

    found: list[Latency] = []
    for line in format_of(latency_report.FORMATS, output)(kept(each_model(checkpoints, plan, measure), found)):
        print(line, flush=True)
    if plot is not None:
        latency_report.draw(found, plot)


def show_memory(checkpoints: list[Checkpoint], plan: Plan, output: str) -> None:
    from bitnet.bench import memory_report
    from bitnet.bench.memory import measure

    if len(checkpoints) * len(plan.tests) * len(plan.threads) > 1:
        raise ParameterError("--memory tells of one model and one test in a process.", "Give each in a run of its own.")
    for line in format_of(memory_report.FORMATS, output)(each_model(checkpoints, plan, measure)):
        print(line, flush=True)


def format_of(formats: dict[str, Any], output: str) -> Any:
    if output not in formats:
        raise ParameterError(f"--output is {output!r}.", f"Known here: {', '.join(formats)}.")
    return formats[output]


def each_model(checkpoints: list[Checkpoint], plan: Plan, measure: Measure) -> Iterator[Any]:
    for checkpoint in checkpoints:
        loading, status = Progress("loading"), StatusLine()
        try:
            with checkpoint:
                for each in measure(checkpoint, plan, loading, status.show):
                    status.clear()
                    yield each
        finally:
            loading.clear()
            status.clear()


def kept(results: Iterator[Any], known: list[Any]) -> Iterator[Any]:
    for result in results:
        known.append(result)
        yield result
