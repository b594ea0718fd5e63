"""`bitnet serve`: the HTTP server."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_type_hints

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
    option,
)
from bitnet.cli.text import note
from bitnet.engine import EngineConfig
from bitnet.errors import ParameterError
from bitnet.server.settings import Settings

ENGINE = EngineConfig()
Opener = Callable[[], BitNet]


def command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A file, a folder or org/name:QUANT, or NAME=one of these; may be repeated: the first is the default "
            "model, the others are loaded when asked for. Absent: the built-in model.",
        ),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option("--api-key-file", help="Read API keys, one a line.")] = None,
    parallel: Annotated[
        int, typer.Option("--parallel", "-np", min=1, help="Sequences that run at once.")
    ] = ENGINE.max_sequences,
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
    **settings: Any,
) -> None:
    try:
        from bitnet.server.app import create_app
        from bitnet.server.listen import run
        from bitnet.server.registry import Registry
    except ImportError as missing:
        raise ParameterError(f"The server needs {missing.name}.", "pip install 'bitnet[serve]'") from missing

    chosen = make_settings(settings, api_key_file)
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
    openers: dict[str, Opener] = {
        name: partial(BitNet, path, **engine) for name, path in named_paths(model or []).items()
    }
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    run(create_app(Registry(openers, chosen), chosen), chosen, lambda url: note(f"Listening on {url}"))


def make_settings(given: dict[str, Any], api_key_file: Path | None) -> Settings:
    keys = list(given.pop("api_key"))
    if api_key_file is not None:
        keys += [line.strip() for line in api_key_file.read_text("utf-8").splitlines() if line.strip()]
        if not keys:
            raise ParameterError(f"{api_key_file} has no API key.", "Write one a line.")
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return Settings(api_key=tuple(keys), **{**given, **lists})


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


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with an option for each field of Settings in place of `**settings`."""
    types = get_type_hints(Settings)
    signature = inspect.signature(command, eval_str=True)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    more = [option(field, types[field.name]) for field in Settings.__dataclass_fields__.values()]
    keyword = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    command.__signature__ = signature.replace(parameters=[*keyword, *more])  # type: ignore[attr-defined]
    return command


command = with_settings(command)
