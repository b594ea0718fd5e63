"""`bitnet top`: a server's figures in the terminal."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Any

import typer

from bitnet.cli.options import AsJson
from bitnet.errors import ParameterError

Url = Annotated[str, typer.Option("--url", help="Where the server is.")]
ApiKey = Annotated[str, typer.Option("--api-key", help="The key of the server, where it wants one.")]
Interval = Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")]
HERE = "http://127.0.0.1:8080"


def command(
    url: Url = HERE,
    api_key: ApiKey = "",
    interval: Interval = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, an interval apart, print and leave.")] = False,
    as_json: AsJson = False,
) -> None:
    try:
        from bitnet.monitor.watch import Watch
    except ImportError as missing:
        raise ParameterError(f"`bitnet top` needs {missing.name}.", "pip install 'bitnet[serve]'") from missing

    watch = Watch(url, api_key)
    if once:
        look_once(watch, interval, as_json)
    elif as_json or not sys.stdout.isatty():
        print_on(watch, interval)
    else:
        follow(watch, interval)


def look_once(watch: Any, interval: float, as_json: bool) -> None:
    """Rates are differences, so one look would not know them. Raises where the server does not answer."""
    for pause in (interval, 0):
        state = watch.ask()
        if state.error is not None:
            raise state.error
        time.sleep(pause)
    if as_json:
        print(json.dumps(watch.state.figures.as_json()))
    else:
        from rich.console import Console

        from bitnet.monitor.screen import screen

        Console().print(screen(watch))


def print_on(watch: Any, interval: float) -> None:
    """A line of JSON at each look, for files and pipes: the figures, or {"time": ..., "error": ...}."""
    while True:
        state = watch.ask()
        error = {"time": time.time(), "error": state.error.message} if state.error else None
        print(json.dumps(error or state.figures.as_json()), flush=True)
        time.sleep(interval)


def follow(watch: Any, interval: float) -> None:
    """Until it is interrupted, which is how one leaves."""
    from rich.live import Live

    from bitnet.monitor.screen import screen

    watch.ask()
    with Live(screen(watch), screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(interval)
                watch.ask()
                live.update(screen(watch), refresh=True)
        except KeyboardInterrupt:
            return
