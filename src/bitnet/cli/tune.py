"""`bitnet tune`: measure which settings suit this machine and this model, for later runs to use."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.bench import opened
from bitnet.cli.loading import Progress, StatusLine
from bitnet.cli.options import KV, AsJson, Force, Model

if TYPE_CHECKING:
    from bitnet.tune.tuning import Tuning


def command(
    model: Model = None,
    synthetic: Annotated[
        str, typer.Option("--synthetic", help='A random model of a real shape, such as "2B-4T", in place of --model.')
    ] = "",
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="How long to measure, loading left out.")] = 50,
    kv: KV = "f16",
    force: Force = False,
    keep: Annotated[bool, typer.Option("--keep/--no-keep", help="Keep the profile for later runs.")] = True,
    as_json: AsJson = False,
) -> None:
    from bitnet.tune import profile
    from bitnet.tune.tuning import tune

    loading, status = Progress("loading"), StatusLine()
    with opened(model, synthetic) as checkpoint:
        try:
            tuning = tune(checkpoint, seconds, kv, force, loading, status.show)
        finally:
            loading.clear()
            status.clear()
        path = profile.save(tuning.profile, checkpoint) if keep else None
    if as_json:
        print(json.dumps(to_json(tuning, path)))
        return
    show(tuning, path)


def to_json(tuning: Tuning, path: Path | None) -> dict[str, Any]:
    return {
        "path": None if path is None else str(path),
        "profile": tuning.profile.to_json(),
        "trials": [asdict(trial) for trial in tuning.trials],
    }


def show(tuning: Tuning, path: Path | None) -> None:
    from rich.table import Table

    from bitnet.cli.inspection_tables import pipeable

    table = Table(title=f"{tuning.profile.model} on {tuning.profile.machine}", title_justify="left", box=None)
    for name in ("setting", "value", "prompt t/s", "decode t/s", "time"):
        table.add_column(name, justify="left" if name == "setting" else "right")
    table.add_column("")
    for row in rows(tuning):
        table.add_row(*row)
    console = pipeable()
    console.print(table)
    console.print()
    for line in summary(tuning, path):
        console.print(line, soft_wrap=True)


def rows(tuning: Tuning) -> Iterator[tuple[str, ...]]:
    """A line for each value that was tried; time: of a request, in shares of that with the value in use before."""
    import statistics

    for trial in tuning.trials:
        if trial.speed is None:
            yield trial.name, str(trial.value), "", "", "", "no time was left"
            continue
        rates = f"{1 / trial.speed.prompt:.1f}", f"{1 / trial.speed.decode:.1f}"
        share = f"{statistics.median(trial.ratios):.2f}"
        yield trial.name, str(trial.value), *rates, share, "kept" if trial.kept else ""


def summary(tuning: Tuning, path: Path | None) -> Iterator[str]:
    before, after, changed = tuning.outcome.before, tuning.outcome.after, tuning.outcome.options.changed()
    if changed:
        settings = ", ".join(f"{name} {value}" for name, value in changed.items())
        yield f"{settings}: a request takes {after.seconds / before.seconds:.2f} of the time it took."
    else:
        yield "Nothing was faster than the defaults beyond doubt."
    if path is not None:
        yield f"Later runs of this model use {path}; --no-profile leaves it out."
