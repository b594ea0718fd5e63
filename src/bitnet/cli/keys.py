"""Single keys from a terminal, which is afterwards as it was."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Wait = Callable[[float], str]


@contextmanager
def keys() -> Iterator[Wait]:
    """Within it `wait(seconds)` gives what is typed meanwhile, "" for nothing."""
    with ending():
        if not sys.stdin.isatty() or os.name != "posix":
            yield sleep
            return
        import termios
        import tty

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal)
            yield lambda seconds: typed(terminal, seconds)
        finally:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def typed(terminal: int, seconds: float) -> str:
    if not select.select([terminal], [], [], seconds)[0]:
        return ""
    found = os.read(terminal, 64)
    if not found:  # the terminal is gone
        raise SystemExit(1)
    return found.decode(errors="replace")


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@contextmanager
def suspending() -> Iterator[threading.Event]:
    """Within it Ctrl-Z sets the event and does nothing else: who sees it cleans up and calls suspend()."""
    asked = threading.Event()
    if not hasattr(signal, "SIGTSTP"):
        yield asked
        return
    before = signal.signal(signal.SIGTSTP, lambda number, frame: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTSTP, before)


def suspend() -> None:
    """Hands the terminal to the shell; returns when the process is brought back, as by `fg`."""
    os.kill(os.getpid(), signal.SIGSTOP)


@contextmanager
def ending() -> Iterator[None]:
    """Signals that would end the process at once let it clean up first."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    wanted = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, leave) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
