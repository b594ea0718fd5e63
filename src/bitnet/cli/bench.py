"""`bitnet bench`: measure tokens per second and memory bandwidth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli.loading import Progress, StatusLine
from bitnet.cli.options import KV, Backend, Force, Head, Kernel, Model, Weights
from bitnet.errors import ParameterError

if TYPE_CHECKING:
    from bitnet.bench.suite import Plan, Result
    from bitnet.formats import Checkpoint

Numbers = list[str]  # "1,2,4", and the option may be repeated
PROMPT, GEN, DEPTH, THREADS = ["512"], ["128"], ["0"], ["0"]


def command(
    model: Model = None,
    synthetic: Annotated[
        str, typer.Option("--synthetic", help='A random model of a real shape, such as "2B-4T", in place of --model.')
    ] = "",
    n_prompt: Annotated[Numbers, typer.Option("--n-prompt", "-p", help="Prompt lengths to read; 0: none.")] = PROMPT,
    n_gen: Annotated[Numbers, typer.Option("--n-gen", "-n", help="Numbers of tokens to generate; 0: none.")] = GEN,
    n_depth: Annotated[Numbers, typer.Option("--n-depth", "-d", help="Tokens of context before each test.")] = DEPTH,
    threads: Annotated[Numbers, typer.Option("--threads", "-t", help="Numbers of threads; 0: all allowed.")] = THREADS,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Times to repeat each test.")] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Prompt tokens read in one step.")] = 512,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Compare the ternary kernels of every instruction set here, not a model.")
    ] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="md, json, jsonl or csv.")] = "md",
    ctx_size: Annotated[int, typer.Option("--ctx-size", "--ctx", "-c", min=0, help="Refuse tests that need more.")] = 0,
    kv: KV = "f16",
    head: Head = "auto",
    backend: Backend = "cpu",
    weights: Weights = "auto",
    kernel: Kernel = "auto",
    force: Force = False,
    write: Annotated[
        Path | None, typer.Option("--write", help="Write the synthetic model as this GGUF file and leave.")
    ] = None,
    file_type: Annotated[str, typer.Option("--type", help="With --write: tq2_0, tq1_0 or i2_s.")] = "tq2_0",
) -> None:
    from bitnet.bench import suite
    from bitnet.bench.report import FORMATS
    from bitnet.bench.speed import Test

    if output not in FORMATS:
        raise ParameterError(f"--output is {output!r}.", f"Known: {', '.join(FORMATS)}.")
    if kernels:
        for text in kernel_lines(output, whole(threads), repetitions):
            print(text, flush=True)
        return
    lengths = [(p, 0) for p in whole(n_prompt) if p] + [(0, n) for n in whole(n_gen) if n]
    tests = tuple(Test(p, n, depth) for depth, (p, n) in product(whole(n_depth), lengths))
    if not tests and write is None:
        raise ParameterError("There is nothing to measure: -p and -n are 0.", "Give one of them: -p 512 or -n 128")
    plan = suite.Plan(
        tests, tuple(whole(threads)), repetitions, batch_size, kv, ctx_size, backend, force, head, weights, kernel
    )
    with opened(model, synthetic) as checkpoint:
        if write is not None:
            write_model(checkpoint, write, file_type, force)
        else:
            for line in FORMATS[output](results(checkpoint, plan)):
                print(line, flush=True)


def whole(given: Numbers) -> list[int]:
    """ "1,2" and "4" as [1, 2, 4]."""
    words = [word.strip() for each in given for word in each.split(",")]
    if not all(word.isdecimal() and int(word) < 1 << 28 for word in words):
        raise ParameterError(f"{','.join(given)} is no list of numbers from 0 up.", "Write them as 1,2,4.")
    return [int(word) for word in words]


def opened(model: Path | None, synthetic: str) -> Checkpoint:
    import bitnet.formats
    from bitnet.api import builtin_model
    from bitnet.models.synthetic import SyntheticCheckpoint

    return SyntheticCheckpoint(synthetic) if synthetic else bitnet.formats.open(model or builtin_model())


def results(checkpoint: Checkpoint, plan: Plan) -> Iterator[Result]:
    from bitnet.bench import suite

    loading, status = Progress("loading"), StatusLine()
    try:
        for result in suite.run(checkpoint, plan, loading, status.show):
            status.clear()
            yield result
    finally:
        loading.clear()
        status.clear()


def kernel_lines(output: str, threads: list[int], samples: int) -> Iterator[str]:
    """The comparison of kernels in the format asked for."""
    from bitnet.bench.kernels import compare, markdown
    from bitnet.bench.report import FORMATS

    status = StatusLine()
    formats: dict[str, Callable[..., Iterator[str]]] = {**FORMATS, "md": markdown}
    try:
        for text in formats[output](compare(threads, samples, status.show)):
            status.clear()
            yield text
    finally:
        status.clear()


def write_model(checkpoint: Checkpoint, path: Path, file_type: str, force: bool) -> None:
    from bitnet.bench.vocabulary import byte_tokenizer
    from bitnet.convert.gguf import write_checkpoint
    from bitnet.models.synthetic import SyntheticCheckpoint

    if not isinstance(checkpoint, SyntheticCheckpoint):
        raise ParameterError("--write writes a synthetic model.", "Name it: --synthetic 2B-4T")
    if path.exists() and not (force and path.is_file()):
        raise ParameterError(f"{path} exists.", "Name another file, or replace a file with --force.")
    tokenizer, progress = byte_tokenizer(), Progress("writing")
    write_checkpoint(checkpoint, path, weights=file_type, tokenizer=tokenizer, progress=progress)  # type: ignore[arg-type]
