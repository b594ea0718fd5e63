"""`bitnet top`: a server's figures in the terminal."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli.keys import Suspended, keys, suspend
from bitnet.cli.options import AsJson
from bitnet.errors import ParameterError

if TYPE_CHECKING:
    from bitnet.monitor.watch import Watch

Url = Annotated[str, typer.Option("--url", help="Where the server is.")]
ApiKey = Annotated[str, typer.Option("--api-key", help="The key of the server, where it wants one.")]
Interval = Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between two looks.")]
HERE = "http://127.0.0.1:8080"
BLINK = 0.1  # seconds until a key or a new size is noticed


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
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if as_json and not once:
        print_on(watch, interval)
    elif once or not terminal:
        look_once(watch, interval, as_json)
    else:
        follow(watch, interval)


def look_once(watch: Watch, interval: float, as_json: bool) -> None:
    """Rates are differences, so one look would not know them. Raises where the server does not answer."""
    for pause in (interval, 0):
        state = watch.ask()
        if state.error is not None:
            raise state.error
        time.sleep(pause)
    if as_json:
        print(json.dumps(state.now and state.now.as_json()))
    else:
        from rich.console import Console

        from bitnet.monitor.screen import Screen

        Console().print(Screen(state, watch.url))


def print_on(watch: Watch, interval: float) -> None:
    """A line of JSON at each look: the figures, or {"time": ..., "error": ...}."""
    while True:
        state = watch.ask()
        failed = state.error and {"time": time.time(), "error": state.error.message}
        print(json.dumps(failed or (state.now and state.now.as_json())), flush=True)
        time.sleep(interval)


def follow(watch: Watch, interval: float) -> None:
    """Until somebody presses q or Ctrl-C, also while a server is slow to answer. Ctrl-Z suspends it."""
    from rich.live import Live

    from bitnet.monitor.screen import Screen

    left = threading.Event()

    def ask() -> None:
        while not left.is_set():
            watch.ask()
            left.wait(interval)

    def look() -> None:
        shown = None
        with keys() as wait, Live(screen=True, auto_refresh=False) as live:
            while "q" not in wait(BLINK).lower():
                state, size = watch.state, live.console.size
                if (state, size) != shown:
                    live.update(Screen(state, watch.url, size.height), refresh=True)
                    shown = (state, size)

    threading.Thread(target=ask, daemon=True).start()
    try:
        while True:
            try:
                return look()
            except Suspended:
                suspend()
    except KeyboardInterrupt:
        pass
    finally:
        left.set()
