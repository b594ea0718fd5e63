"""Which models a command serves, and how their engines run: what `serve` and `batch` have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

import bitnet.formats
from bitnet import hub
from bitnet.api import BitNet, builtin_model
from bitnet.cli.options import (
    KV,
    Backend,
    CtxKeep,
    CtxOverflow,
    CtxSize,
    Draft,
    DraftTokens,
    Force,
    Head,
    Kernel,
    Profile,
    Threads,
    Weights,
)
from bitnet.engine import EngineConfig
from bitnet.errors import ParameterError

ENGINE = EngineConfig()
Opener = Callable[[], BitNet]


def openers(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A file, a folder or org/name:QUANT, or NAME=one of these; may be repeated: the first is the default "
            "model, the others are loaded when asked for. Absent: the built-in model.",
        ),
    ] = None,
    parallel: Annotated[int, typer.Option("--parallel", "-np", min=1, help="Sequences that run at once.")] = 16,
    threads: Threads = 0,
    ctx_size: CtxSize = ENGINE.ctx_size,
    kv: KV = ENGINE.kv,
    head: Head = ENGINE.head,
    backend: Backend = "cpu",
    weights: Weights = "auto",
    kernel: Kernel = "auto",
    force: Force = False,
    profile: Profile = True,
    draft: Draft = None,
    draft_tokens: DraftTokens = ENGINE.draft_tokens,
    ctx_overflow: CtxOverflow = ENGINE.ctx_overflow,
    ctx_keep: CtxKeep = ENGINE.ctx_keep,
    prefix_cache: Annotated[
        bool,
        typer.Option("--prefix-cache/--no-prefix-cache", help="Keep what was computed for prompts that begin alike."),
    ] = ENGINE.prefix_cache,
) -> dict[str, Opener]:
    """How to open each model, by its name; the first is the default one."""
    engine: dict[str, Any] = {
        "threads": threads,
        "ctx_size": ctx_size,
        "max_sequences": parallel,
        "kv": kv,
        "head": head,
        "backend": backend,
        "weights": weights,
        "kernel": kernel,
        "force": force,
        "profile": profile,
        "draft": draft,
        "draft_tokens": draft_tokens,
        "ctx_overflow": ctx_overflow,
        "ctx_keep": ctx_keep,
        "prefix_cache": prefix_cache,
    }
    return {name: partial(BitNet, path, **engine) for name, path in named_paths(model or []).items()}


def named_paths(given: list[str]) -> dict[str, Path]:
    """Names, and where the models are. What must be fetched is fetched now: no request ever causes that.

    Raises ModelError for what cannot be opened, before anyone is let in.
    """
    found: dict[str, Path] = {}
    for entry in given or [""]:
        name, model = split(entry)
        if name in found:
            raise ParameterError(f"Two models are called {name}.", f"Name one of them: --model other={model}")
        found[name] = hub.locate(model) if model else builtin_model()
        bitnet.formats.open(found[name]).close()
    return found


def split(entry: str) -> tuple[str, str]:
    """`NAME=MODEL`, or a model that is called what its file or repository is."""
    name, equals, model = entry.partition("=")
    if equals and name and "/" not in name and not Path(entry).exists():
        return name, model
    if not entry:
        return builtin_model().stem, ""
    path = Path(entry)
    return (path.name.removesuffix(".gguf") if path.exists() else entry), entry


def with_options(command: Callable[..., None], *more: inspect.Parameter) -> Callable[..., None]:
    """`command` with the options of `openers`, and `more`, in place of `**given`."""
    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    positional = [each for each in own if each.default is inspect.Parameter.empty]
    options = [*(each for each in own if each not in positional), *OPENERS.values()]
    keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*positional, *options, *more)]
    command.__signature__ = signature.replace(parameters=keyword)  # type: ignore[attr-defined]
    return command


def taken(given: dict[str, Any]) -> dict[str, Any]:
    """The options of `openers`, which are no longer in `given`."""
    return {name: given.pop(name) for name in OPENERS}


OPENERS = inspect.signature(openers, eval_str=True).parameters
