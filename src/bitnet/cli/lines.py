"""Where a user's words come from: a terminal with history and editing, or lines from a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prompt_toolkit.history import History

QUOTES = '"""'


class Lines(Protocol):
    """interactive: whether somebody is there to answer questions. `line`: None at the end of the input."""

    interactive: bool

    def line(self, prompt: str) -> str | None: ...


class Pipe:
    interactive = False

    def line(self, prompt: str) -> str | None:
        data = sys.stdin.buffer.readline()
        return data.decode("utf-8", "replace").rstrip("\r\n") if data else None


class Terminal:
    """commands: completed with Tab. Arrow-up brings back the lines of earlier sessions."""

    interactive = True

    def __init__(self, commands: Iterable[str]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter

        completer = WordCompleter(list(commands), sentence=True)
        self._session: PromptSession[str] = PromptSession(
            history=history(), completer=completer, complete_while_typing=False
        )

    def line(self, prompt: str) -> str | None:
        try:
            return self._session.prompt(prompt)
        except EOFError:
            return None


def history() -> History:
    """Kept in the user's state directory, readable by the user alone; in memory where that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "bitnet" / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    except (OSError, RuntimeError):
        return InMemoryHistory()
    return FileHistory(path)


def read_turn(lines: Lines) -> str | None:
    '''What the user says next: one line, or several between """ and """, or the end. None at the end.'''
    first = lines.line("> ")
    if first is None or not first.startswith(QUOTES):
        return first
    parts = [first.removeprefix(QUOTES)]
    while not parts[-1].rstrip().endswith(QUOTES):
        more = lines.line("... ")
        if more is None:
            break
        parts.append(more)
    return "\n".join(parts).rstrip().removesuffix(QUOTES).strip("\n")
