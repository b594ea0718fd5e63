"""`bitnet batch`: answer a file of requests without a server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet.cli.loading import StatusLine
from bitnet.cli.served_models import openers, taken, with_options
from bitnet.cli.text import note
from bitnet.errors import ParameterError

YEAR = 365 * 86400.0


def command(
    source: Annotated[
        Path, typer.Argument(metavar="IN.jsonl", help="Requests: custom_id, method, url and body a line, as OpenAI's.")
    ],
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT.jsonl", help="Answers, as they come. What it holds already is not asked again."),
    ],
    at_once: Annotated[
        int, typer.Option("--at-once", min=0, help="Requests under way; 0: two for each of --parallel.")
    ] = 0,
    max_body: Annotated[int, typer.Option("--max-body", min=1024, help="Bytes of a line at most.")] = 8 << 20,
    **given: Any,
) -> None:
    try:
        from bitnet.server.app import create_app
        from bitnet.server.batch import Results, answer
        from bitnet.server.registry import Registry
        from bitnet.server.settings import Settings
    except ImportError as missing:
        raise ParameterError(f"This needs {missing.name}.", "pip install 'bitnet[serve]'") from missing

    if out.exists() and source.exists() and os.path.samefile(source, out):
        raise ParameterError("The answers cannot go where the requests are.", "Name another file for the answers.")
    engine = taken(given)
    wanted = at_once or 2 * engine["parallel"]
    settings = Settings(queue_size=wanted * engine["parallel"], queue_timeout=YEAR, max_body=max_body)
    with source.open("rb") as requests:
        models = openers(**engine)
        with Results(out) as results:
            progress = Tallied(count_lines(source), results.tally.skipped)
            try:
                tally = answer(create_app(Registry(models, settings), settings), requests, results, wanted, progress)
            finally:
                progress.clear()
    note(
        f"[{tally.answered} answered, {tally.failed} failed, {tally.skipped} of them earlier"
        f" | {time.monotonic() - progress.started:.1f} s | {out}]"
    )
    if tally.failed:
        raise typer.Exit(1)


def count_lines(path: Path) -> int:
    """0 for what can be read only once."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))


class Tallied(StatusLine):
    """`120 of 1000, 3 failed, 4.1 a second, 215 s left`."""

    def __init__(self, total: int, skipped: int) -> None:
        super().__init__()
        self.started = time.monotonic()
        self._total, self._skipped = total, skipped

    def __call__(self, tally: Any) -> None:
        rate = (tally.lines - self._skipped) / max(1e-9, time.monotonic() - self.started)
        left = max(0, self._total - tally.lines) / max(1e-9, rate)
        self.show(f"{tally.lines} of {self._total}, {tally.failed} failed, {rate:.1f} a second, {left:.0f} s left")


command: Callable[..., None] = with_options(command)  # type: ignore[no-redef]
