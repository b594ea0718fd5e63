"""`bitnet compile`: make a model a shared library, for this machine or another."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet import backends
from bitnet.cli.loading import Progress, StatusLine, opened
from bitnet.cli.options import AsJson, Force, Threads
from bitnet.errors import ParameterError

TARGET = '"host", "x86-64-v3" (AVX2), "x86-64-v4" (AVX-512 VNNI), "aarch64", "aarch64-dotprod" or "cuda".'


def command(
    model: Annotated[
        Path | None, typer.Argument(help="GGUF file or Hugging Face folder; absent: the built-in.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The library to write.")] = Path("model.so"),
    target: Annotated[str, typer.Option("--target", help=f"What it is for: {TARGET}")] = "host",
    ctx_size: Annotated[
        int, typer.Option("--ctx-size", min=0, help="Positions of a sequence; 0: the model's own maximum.")
    ] = 4096,
    kv: Annotated[str, typer.Option("--kv", help='Type of the cached keys and values, "f16" or "f32".')] = "f16",
    kernels: Annotated[
        str, typer.Option("--kernels", help='"tvm", "native" (bitnet\'s own) or "auto": the faster for each product.')
    ] = "auto",
    tune: Annotated[int, typer.Option("--tune", min=0, metavar="N", help="Ways to try for each product; 0: one.")] = 0,
    database: Annotated[
        Path | None, typer.Option("--database", help="What tuning knows, in place of the one in the cache.")
    ] = None,
    operator_seconds: Annotated[
        float, typer.Option("--operator-seconds", min=1, help="Time limit for tuning a product.")
    ] = 300.0,
    model_seconds: Annotated[
        float, typer.Option("--model-seconds", min=1, help="Time limit for tuning all of them.")
    ] = 600.0,
    threads: Threads = 0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    try:
        compiling: Any = import_module("bitnet.compile")
    except ImportError as error:
        raise ParameterError(f"Compiling needs {error.name}.", "pip install 'bitnet[tvm]'") from error
    limits = (operator_seconds, model_seconds)
    options = compiling.Options(target, ctx_size, kv, kernels, tune, database, *limits, force)
    backends.set_threads(threads)
    loading, status = Progress("loading"), StatusLine()
    try:
        with opened(model) as checkpoint:
            done = compiling.compile_model(checkpoint, out, options, loading, status.show)
    finally:
        loading.clear()
        status.clear()
    if as_json:
        print(json.dumps({**asdict(done), "path": str(done.path)}))
        return
    print(f"{done.path}  {done.nbytes / 2**20:,.1f} MiB, for {done.target}, {done.context} positions")
    for line in done.products:
        print(f"  {line}")
    print(f"{done.seconds:.1f} s")
