"""Text in and out: prompts from where the user put them, answers to where the user looks."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bitnet.errors import ParameterError


def read_prompt(given: str | None, file: Path | None) -> str | None:
    """The prompt from the argument, the file, or stdin: where told by "-", or where something is piped in."""
    if given is not None and file is not None:
        raise ParameterError("There are two prompts, one as an argument and one in --file.", "Give one of them.")
    if file is not None and str(file) != "-":
        return decoded(file.read_bytes())
    if given == "-" or file is not None or (given is None and not sys.stdin.isatty()):
        return decoded(sys.stdin.buffer.read()) or None
    return None if given is None else decoded(os.fsencode(given))


def decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def write(text: str) -> None:
    """Show a piece of an answer at once. A terminal gets no control characters from a model."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def printable(text: str) -> str:
    return text if text.isprintable() else "".join(c for c in text if c.isprintable() or c in "\n\t")


def coloured() -> bool:
    """Whether stdout wants colours (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if coloured() else text


def note(text: str) -> None:
    """Say something beside the answer."""
    dim = sys.stderr.isatty() and coloured()
    print(f"\033[2m{text}\033[0m" if dim else text, file=sys.stderr, flush=True)
