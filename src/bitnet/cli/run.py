"""`bitnet run`: write on after a prompt."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet.api import BitNet, sampling_params
from bitnet.cli.generation import Report, note_slid, stream
from bitnet.cli.loading import open_model
from bitnet.cli.options import (
    KV,
    AsJson,
    Backend,
    CtxKeep,
    CtxOverflow,
    CtxSize,
    Draft,
    DraftTokens,
    Force,
    Head,
    Kernel,
    Model,
    Profile,
    Stats,
    Threads,
    Weights,
)
from bitnet.cli.text import bold, note, printable, read_prompt, write
from bitnet.engine import EngineConfig
from bitnet.errors import ParameterError

ENGINE = EngineConfig()
OPENING = "Once upon a time"  # for the built-in model, which tells stories


def command(
    prompt: Annotated[str | None, typer.Argument(help='Text to go on from; absent or "-": from stdin.')] = None,
    model: Model = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the prompt from this file.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    threads: Threads = 0,
    ctx_size: CtxSize = ENGINE.ctx_size,
    kv: KV = ENGINE.kv,
    head: Head = ENGINE.head,
    backend: Backend = "cpu",
    weights: Weights = "auto",
    kernel: Kernel = "auto",
    force: Force = False,
    profile: Profile = True,
    as_json: AsJson = False,
    stats: Stats = True,
    draft: Draft = None,
    draft_tokens: DraftTokens = ENGINE.draft_tokens,
    ctx_overflow: CtxOverflow = ENGINE.ctx_overflow,
    ctx_keep: CtxKeep = ENGINE.ctx_keep,
    **sampling: Any,
) -> None:
    params = sampling_params(sampling.pop("max_tokens"), sampling)
    text = read_prompt(prompt, file) or (OPENING if model is None and file is None else None)
    if text is None:
        raise ParameterError("There is no prompt.", 'Give one: bitnet run "Once upon a time"')
    bitnet = open_model(
        model,
        threads=threads,
        ctx_size=ctx_size,
        kv=kv,
        head=head,
        backend=backend,
        weights=weights,
        kernel=kernel,
        force=force,
        profile=profile,
        draft=draft,
        draft_tokens=draft_tokens,
        ctx_overflow=ctx_overflow,
        ctx_keep=ctx_keep,
    )
    sequence = bitnet.llm.add_request(prompt_ids(bitnet, text, chat), params)
    if as_json:
        pieces: list[str] = []
        try:
            stream(bitnet, sequence, pieces.append)
        finally:
            print(json.dumps({"prompt": text, "text": "".join(pieces), **Report.of(bitnet, sequence).to_json()}))
        return
    if sys.stdout.isatty() and not chat:
        write_prompt(text)
    try:
        stream(bitnet, sequence, write)
    finally:
        write("\n")
        note_slid(sequence)
        if stats:
            note(Report.of(bitnet, sequence).line())


def prompt_ids(bitnet: BitNet, text: str, chat: bool) -> list[int]:
    if not chat:
        return bitnet.tokenize(text)
    return bitnet.chat_template.apply([{"role": "user", "content": text}], bitnet.tokenizer)


def write_prompt(text: str) -> None:
    """A terminal shows the prompt before what follows it, for together they are the text."""
    sys.stdout.write(bold(printable(text)))
