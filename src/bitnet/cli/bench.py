"""`bitnet bench`: measure tokens per second, memory bandwidth and latency, beside other engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli.loading import Progress, StatusLine, opened
from bitnet.cli.options import KV, Backend, Force, Head, Kernel, Model, Weights
from bitnet.errors import ParameterError

if TYPE_CHECKING:
    from bitnet.bench.results import Result
    from bitnet.bench.speed import Test
    from bitnet.bench.suite import Plan
    from bitnet.formats import Checkpoint

Words = list[str]  # "a,b,c", and the option may be repeated
PROMPT, GEN, DEPTH, THREADS = ["512"], ["128"], ["0"], ["0"]
NONE: Words = []


def command(
    model: Model = None,
    synthetic: Annotated[
        Words, typer.Option("--synthetic", help='Random models of real shapes, such as "100M,2B-4T"; no --model then.')
    ] = NONE,
    n_prompt: Annotated[Words, typer.Option("--n-prompt", "-p", help="Prompt lengths to read; 0: none.")] = PROMPT,
    n_gen: Annotated[Words, typer.Option("--n-gen", "-n", help="Numbers of tokens to generate; 0: none.")] = GEN,
    n_depth: Annotated[Words, typer.Option("--n-depth", "-d", help="Tokens of context before each test.")] = DEPTH,
    threads: Annotated[Words, typer.Option("--threads", "-t", help="Numbers of threads; 0: all allowed.")] = THREADS,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Times to repeat each test.")] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Prompt tokens read in one step.")] = 512,
    peers: Annotated[
        Words, typer.Option("--peers", help='Engines to measure in turn with this one: "llama.cpp", ... or "all".')
    ] = NONE,
    peer_python: Annotated[
        Words, typer.Option("--peer-python", help="The Python that has the peers; NAME=PATH for one of them.")
    ] = NONE,
    latency: Annotated[
        bool, typer.Option("--latency", help="Tell how long the first and each later token takes, and how that varies.")
    ] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Tell what the memory goes to: one model, the first of each list.")
    ] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Compare the ternary kernels of every instruction set here, not a model.")
    ] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="md, json, jsonl or csv.")] = "md",
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the results against the bandwidth: FILE.svg or FILE.png.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: take the results that this JSON file holds.")
    ] = None,
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
    from bitnet.bench import report, suite
    from bitnet.bench.peers import chosen
    from bitnet.cli.bench_reports import each_model, kept, show_latency, show_memory

    if output not in report.FORMATS:
        raise ParameterError(f"--output is {output!r}.", f"Known: {', '.join(report.FORMATS)}.")
    if sum((latency, memory, kernels)) > 1:
        raise ParameterError("--latency, --memory and --kernels are reports of their own.", "Give one of them.")
    names = split(synthetic)
    if write is not None:
        write_model(names, write, file_type, force)
        return
    if kernels:
        for text in kernel_lines(output, whole(threads), repetitions):
            print(text, flush=True)
        return
    if plot is not None:
        check_plot(plot, force)
    if source is not None:
        results = iter(report.read(source))
    else:
        asked = chosen(split(peers), peer_python)
        plan = suite.Plan(
            tests=after_prompts(n_prompt, n_gen, n_depth) if latency or memory else tests(n_prompt, n_gen, n_depth),
            threads=tuple(whole(threads)),
            repetitions=repetitions,
            n_batch=batch_size,
            kv=kv,
            ctx_size=ctx_size,
            backend=backend,
            force=force,
            head=head,
            weights=weights,
            kernel=kernel,
            peers=asked,
        )
        if memory:
            show_memory(checkpoints(model, names, plan), plan, output)
            return
        if latency:
            show_latency(checkpoints(model, names, plan), plan, output, plot)
            return
        results = each_model(checkpoints(model, names, plan), plan, suite.run)
    known: list[Result] = []
    for line in report.FORMATS[output](kept(results, known)):
        print(line, flush=True)
    if plot is not None:
        draw(known, plot)


def split(given: Words) -> list[str]:
    """ "a,b" and "c" as [a, b, c]."""
    return [word.strip() for each in given for word in each.split(",") if word.strip()]


def whole(given: Words) -> list[int]:
    """ "1,2" and "4" as [1, 2, 4]."""
    words = [word.strip() for each in given for word in each.split(",")]
    if not all(word.isdecimal() and int(word) < 1 << 28 for word in words):
        raise ParameterError(f"{','.join(given)} is no list of numbers from 0 up.", "Write them as 1,2,4.")
    return [int(word) for word in words]


def tests(n_prompt: Words, n_gen: Words, n_depth: Words) -> tuple[Test, ...]:
    from bitnet.bench.speed import Test

    lengths = [(p, 0) for p in whole(n_prompt) if p] + [(0, n) for n in whole(n_gen) if n]
    found = tuple(Test(p, n, depth) for depth, (p, n) in product(whole(n_depth), lengths))
    if not found:
        raise ParameterError("There is nothing to measure: -p and -n are 0.", "Give one of them: -p 512 or -n 128")
    return found


def after_prompts(n_prompt: Words, n_gen: Words, n_depth: Words) -> tuple[Test, ...]:
    """Each prompt with each answer to it."""
    from bitnet.bench.speed import Test

    return tuple(Test(p, n, depth) for depth, p, n in product(whole(n_depth), whole(n_prompt), whole(n_gen)))


def checkpoints(model: Path | None, names: list[str], plan: Plan) -> list[Checkpoint]:
    """A wrong name is refused before anything is run."""
    return [synthetic_model(name, plan) for name in names] or [opened(model)]


def synthetic_model(name: str, plan: Plan) -> Checkpoint:
    """Beside llama.cpp a BitNet gates as that does, with SiLU: so both compute the same model."""
    from bitnet.models.synthetic import SyntheticCheckpoint

    return SyntheticCheckpoint(name, hidden_act="silu") if "llama.cpp" in plan.peers else SyntheticCheckpoint(name)


def check_plot(path: Path, force: bool) -> None:
    """Before hours of measuring: ParameterError where nothing could be drawn there."""
    from bitnet.bench.plot import check

    check(path)
    if path.exists() and not (force and path.is_file()):
        raise ParameterError(f"{path} exists.", "Name another file, or replace a file with --force.")


def draw(results: list[Result], path: Path) -> None:
    from bitnet.bench.plot import draw

    draw(results, path)


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


def write_model(names: list[str], path: Path, file_type: str, force: bool) -> None:
    from bitnet.bench.vocabulary import byte_tokenizer
    from bitnet.convert.gguf import write_checkpoint
    from bitnet.models.load import open_model
    from bitnet.models.synthetic import SyntheticCheckpoint

    if len(names) != 1:
        raise ParameterError("--write writes one synthetic model.", "Name it: --synthetic 2B-4T")
    if path.exists() and not (force and path.is_file()):
        raise ParameterError(f"{path} exists.", "Name another file, or replace a file with --force.")
    checkpoint, progress = SyntheticCheckpoint(names[0]), Progress("writing")
    tokenizer = byte_tokenizer(open_model(checkpoint)[1].vocab_size)
    write_checkpoint(checkpoint, path, weights=file_type, tokenizer=tokenizer, progress=progress)  # type: ignore[arg-type]
