"""What the command line says when something fails: what happened, why, and how to mend it, one line each."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from bitnet.errors import (
    AccessError,
    BitNetError,
    ContextError,
    DownloadError,
    FormatError,
    HubError,
    ModelError,
    NotFoundError,
    OfflineError,
    ParameterError,
    RateLimitError,
    ResourceError,
    ScrapeError,
    ShapeError,
    UnsupportedError,
)

INTERRUPTED = 130
UsageError = typer.BadParameter.__mro__[1]  # typer exports only this subclass

# Looked through in order, so the particular comes before the general.
REASONS: tuple[tuple[type[BaseException], str, str], ...] = (
    (FormatError, "the file is damaged, or not what it claims to be", "download or convert the model again"),
    (UnsupportedError, "the model is sound, but this version cannot run it", "see `bitnet inspect FILE`"),
    (ShapeError, "the tensors and the configuration of the model disagree", "download or convert the model again"),
    (ModelError, "no file can be read there", "check the path, or name a model: `bitnet list --known`"),
    (OfflineError, "what is not in the cache comes over the network", "see `bitnet list` for what is here"),
    (NotFoundError, "nothing of that name is there", "see `bitnet list` and `bitnet list --known`"),
    (AccessError, "the repository is open only to those who may see it", "log in: `hf auth login`, or set HF_TOKEN"),
    (RateLimitError, "the hub asks for patience", "wait a few minutes"),
    (DownloadError, "what came is not what was announced", "run the same command again"),
    (HubError, "the hub could not do what was asked", "try again later"),
    (ContextError, "prompt and answer must fit into the context together", "shorten the prompt or raise --ctx-size"),
    (ParameterError, "an argument is missing, out of range or of the wrong kind", "see `bitnet COMMAND --help`"),
    (ScrapeError, "the figures come from the server's /metrics", "start it with `bitnet serve`, or name it with --url"),
    (ResourceError, "there is not enough memory, disk or processors for this", "close other programs or ask for less"),
    (BitNetError, "the model could not go on", "run it again with --debug to see where"),
    (MemoryError, "there is not enough memory for this", "lower --ctx-size or choose a smaller model"),
    (ImportError, "a part of bitnet, or a library it uses, is not installed", "install it again: pip install bitnet"),
    (OSError, "the operating system refused", "check the path, its permissions and the space on the disk"),
    (Exception, "this is a defect in bitnet, not in what you typed", "report what --debug shows"),
)


def explain(error: BaseException) -> int:
    """Print the three lines of `error` on stderr and return the exit code."""
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return INTERRUPTED
    if isinstance(error, UsageError):
        return explain_usage(error)
    why, mend = next((why, mend) for kind, why, mend in REASONS if isinstance(error, kind))
    say(what(error), why, getattr(error, "hint", "") or mend)
    return int(getattr(error, "exit_code", 1))


def explain_usage(error: Any) -> int:
    context = error.ctx
    usage = context.get_usage().removeprefix("Usage: ") if context else "bitnet COMMAND"
    path = context.command_path if context else "bitnet"
    say(error.format_message(), f"the usage is {usage}", f"see `{path} --help`")
    return 2


def what(error: BaseException) -> str:
    if isinstance(error, BitNetError):
        return error.message
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, (OSError, ImportError)):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def say(what: str, why: str, mend: str) -> None:
    print(f"error: {one_line(what)}\n  why: {one_line(why)}\n  fix: {one_line(mend)}", file=sys.stderr)


def one_line(text: str) -> str:
    """Names in a file may hold anything: control characters must not reach the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def forget_output() -> int:
    """Whoever read our output has seen enough, which is no failure. What is still buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
