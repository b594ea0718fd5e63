"""`bitnet perplexity`: how well a model predicts a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.loading import Progress, open_model
from bitnet.cli.options import KV, AsJson, Backend, Force, Model, Threads, Weights
from bitnet.cli.text import read_prompt
from bitnet.errors import ParameterError

if TYPE_CHECKING:
    from bitnet.evaluate.perplexity import Perplexity


def command(
    file: Annotated[Path, typer.Argument(help='The text; "-": stdin.')],
    model: Model = None,
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=4, help="Tokens of a window.")] = 512,
    stride: Annotated[
        int,
        typer.Option(
            "--stride", min=0, help="Tokens from a window to the next; 0: side by side, second halves scored."
        ),
    ] = 0,
    threads: Threads = 0,
    kv: KV = "f16",
    backend: Backend = "cpu",
    weights: Weights = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    from bitnet.evaluate.perplexity import score_text

    text = read_prompt(None, file)
    if not text:
        raise ParameterError(f"{file} holds no text.")
    options: dict[str, Any] = {"threads": threads, "kv": kv, "backend": backend, "weights": weights, "force": force}
    bitnet = open_model(model, ctx_size=ctx, head="full", **options)
    progress = Progress("scoring")
    try:
        found = score_text(bitnet.llm.model, bitnet.tokenizer, text, ctx, stride, kv, progress)
    finally:
        progress.clear()
    print(json.dumps(to_json(found, bitnet.path, stride)) if as_json else summary(found))


def to_json(found: Perplexity, model: Path, stride: int) -> dict[str, Any]:
    return {
        "model": str(model),
        "perplexity": found.value,
        "error": found.error,
        "bits_per_character": found.bits_per_character,
        "tokens": len(found.losses),
        "characters": found.characters,
        "windows": found.windows,
        "ctx": found.ctx,
        "stride": stride,
    }


def summary(found: Perplexity) -> str:
    counts = f"{len(found.losses):,} tokens scored in {found.windows} windows of {found.ctx}"
    rates = f"perplexity {found.value:.4f} ± {found.error:.4f}   {found.bits_per_character:.4f} bits per character"
    return f"{rates}   {counts}"
