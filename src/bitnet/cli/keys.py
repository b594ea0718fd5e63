"""Single keys from a terminal, which is afterwards as it was."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Wait = Callable[[float], str]


class Suspended(Exception):
    """Ctrl-Z was pressed: who has cleaned up calls suspend()."""


@contextmanager
def keys() -> Iterator[Wait]:
    """Within it `wait(seconds)` gives what is typed meanwhile, "" for nothing.

    Signals that end or stop a process are noted and raised by `wait` alone, as KeyboardInterrupt, SystemExit or
    Suspended: never in the midst of something, where they might be lost.
    """
    with noted() as came:
        if not sys.stdin.isatty() or os.name != "posix":
            yield lambda seconds: heeding(came, sleep, seconds)
            return
        import termios
        import tty

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal)
            yield lambda seconds: heeding(came, lambda s: typed(terminal, s), seconds)
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


def heeding(came: list[int], wait: Wait, seconds: float) -> str:
    found = "" if came else wait(seconds)
    if not came:
        return found
    number = came.pop(0)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Suspended if number == getattr(signal, "SIGTSTP", None) else SystemExit(128 + number)


@contextmanager
def noted() -> Iterator[list[int]]:
    """The signals that came, the first first."""
    came: list[int] = []
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGTSTP")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def suspend() -> None:
    """Hands the terminal to the shell; returns when the process is brought back, as by `fg`."""
    os.kill(os.getpid(), signal.SIGSTOP)
