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
    from bitnet.api import BitNet
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
    base: Annotated[
        Path | None, typer.Option("--base", help="A model to tell the divergence from, such as the one converted.")
    ] = None,
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
    if base is not None:
        if stride:
            raise ParameterError("The divergence from a base is measured without --stride.")
        show_divergence(bitnet, open_model(base, ctx_size=ctx, head="full", **options), text, ctx, kv, as_json)
        return
    try:
        found = score_text(bitnet.llm.model, bitnet.tokenizer, text, ctx, stride, kv, progress)
    finally:
        progress.clear()
    print(json.dumps(to_json(found, bitnet.path, stride)) if as_json else summary(found))


def show_divergence(model: BitNet, base: BitNet, text: str, ctx: int, kv: str, as_json: bool) -> None:
    from bitnet.evaluate.divergence import divergence

    ids, progress = model.tokenize(text), Progress("scoring")
    if ids != base.tokenize(text):
        raise ParameterError("The models cut the text into different tokens: their predictions cannot be compared.")
    try:
        found = divergence(model.llm.model, base.llm.model, model.tokenizer, ids, ctx, kv, progress)
    finally:
        progress.clear()
    perplexity, base_perplexity = found.perplexities
    if as_json:
        values = {
            "perplexity": perplexity,
            "base_perplexity": base_perplexity,
            "kl": found.mean,
            "kl_error": found.error,
        }
        values |= {"kl_median": found.quantile(0.5), "kl_p99": found.quantile(0.99), "kl_max": found.quantile(1)}
        values |= {"same_top": found.agreement, "tokens": len(found.kl)}
        print(json.dumps({"model": str(model.path), "base": str(base.path), **values}))
        return
    print(f"perplexity {perplexity:.4f}, of the base {base_perplexity:.4f}   {len(found.kl):,} tokens scored")
    print(f"KL from the base {found.mean:.6g} ± {found.error:.2g} nats   99 % below {found.quantile(0.99):.4g}")
    print(f"same likeliest token {100 * found.agreement:.2f} %")


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
