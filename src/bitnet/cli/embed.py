"""`bitnet embed`: turn texts into vectors."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet.cli.loading import open_model
from bitnet.cli.options import KV, AsJson, Backend, CtxSize, Force, Model, Threads
from bitnet.cli.text import decoded
from bitnet.engine import EngineConfig
from bitnet.errors import ParameterError

ENGINE = EngineConfig()


def command(
    texts: Annotated[
        list[str] | None, typer.Argument(help='Texts to embed; "-" or a pipe: from stdin, a text a line.')
    ] = None,
    model: Model = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read texts from this file, one a line.")] = None,
    pooling: Annotated[str, typer.Option("--pooling", help='"last", "mean" or "cls"; absent: as the model says.')] = "",
    normalize: Annotated[bool, typer.Option("--normalize/--no-normalize", help="Give vectors of length 1.")] = True,
    similarity: Annotated[
        bool, typer.Option("--similarity", help="Print how alike the texts are (cosines) instead of their vectors.")
    ] = False,
    threads: Threads = 0,
    ctx_size: CtxSize = ENGINE.ctx_size,
    kv: KV = ENGINE.kv,
    backend: Backend = "cpu",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    given = list(read_texts(texts or [], file))
    if not given:
        raise ParameterError("There is no text.", 'Give one: bitnet embed "a text"')
    bitnet = open_model(model, threads=threads, ctx_size=ctx_size, kv=kv, head="full", backend=backend, force=force)
    vectors = bitnet.embed(given, pooling=pooling or None, normalize=normalize)
    counts = [len(bitnet.tokenize(each)) for each in given]
    if similarity:
        lengths = (vectors**2).sum(axis=1, keepdims=True) ** 0.5
        show_similarity(given, (vectors @ vectors.T / (lengths @ lengths.T).clip(1e-12)).tolist(), as_json)
    elif as_json:
        items = zip(given, counts, vectors.tolist(), strict=True)
        data = [{"text": text, "tokens": count, "embedding": vector} for text, count, vector in items]
        found: dict[str, Any] = {"pooling": pooling or bitnet.pooling, "dimensions": vectors.shape[1], "data": data}
        print(json.dumps(found))
    else:
        for vector in vectors.tolist():
            print(json.dumps(vector))


def read_texts(given: list[str], file: Path | None) -> Iterator[str]:
    """The arguments, or the lines of the file or of stdin; empty lines are no texts."""
    if given and given != ["-"] and file is not None:
        raise ParameterError("There are texts as arguments and in --file.", "Give one of them.")
    if file is not None and str(file) != "-":
        lines = decoded(file.read_bytes())
    elif given == ["-"] or file is not None or (not given and not sys.stdin.isatty()):
        lines = decoded(sys.stdin.buffer.read())
    else:
        yield from given
        return
    yield from (line for line in lines.splitlines() if line.strip())


def show_similarity(texts: list[str], cosines: list[list[float]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"texts": texts, "similarity": cosines}))
        return
    for text, row in zip(texts, cosines, strict=True):
        print("  ".join(f"{cosine:6.3f}" for cosine in row), f" {text:.50}")
