"""`bitnet compare`: two models, or one on two backends, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet import hub
from bitnet.api import builtin_model
from bitnet.cli.loading import Progress, StatusLine
from bitnet.cli.options import KV, AsJson, Force, Threads, Weights
from bitnet.cli.text import read_prompt
from bitnet.errors import ParameterError
from bitnet.formats.atomic import replacing

if TYPE_CHECKING:
    from bitnet.evaluate.comparison import Comparison, Subject


def command(
    models: Annotated[
        list[Path] | None,
        typer.Argument(help="The base and the model to compare with it; one of them for two backends."),
    ] = None,
    backends: Annotated[
        list[str] | None, typer.Option("--backend", help='"cpu", "reference" or "tvm", once for each side.')
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="The text that perplexity and divergence are measured on.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write it down: FILE.md or FILE.html.")] = None,
    n_prompt: Annotated[int, typer.Option("--n-prompt", "-p", min=1, help="Tokens of the prompt that is timed.")] = 128,
    n_gen: Annotated[int, typer.Option("--n-gen", "-n", min=1, help="Tokens that are generated.")] = 32,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="Times to repeat each test.")] = 3,
    ctx: Annotated[int, typer.Option("--ctx", "-c", min=4, help="Tokens of a window of the text.")] = 512,
    threads: Threads = 0,
    kv: KV = "f16",
    weights: Weights = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    from bitnet.evaluate.comparison import Options, compare
    from bitnet.evaluate.comparison_report import markdown

    if report is not None and report.suffix not in (".md", ".html"):
        raise ParameterError(f"--report is {report}; expected a file that ends in .md or .html.")
    for path in [] if report is None else [report, *([report.with_suffix(".svg")] if report.suffix == ".md" else [])]:
        if path.exists() and not force:
            raise ParameterError(f"{path} exists.", "Name another file, or replace it with --force.")
    text = "" if file is None else read_prompt(None, file) or ""
    options = Options(n_prompt, n_gen, repetitions, threads, ctx, kv, weights, force)
    loading, status = Progress("loading"), StatusLine()
    try:
        found = compare(sides(models or [], backends or []), text, options, loading, status.show)
    finally:
        loading.clear()
        status.clear()
    if report is not None:
        write(found, report)
    print(json.dumps(to_json(found)) if as_json else markdown(found), end="\n" if as_json else "")


def write(found: Comparison, report: Path) -> None:
    """A markdown file gets its picture beside it, NAME.svg."""
    from bitnet.evaluate.comparison_report import markdown, page, picture

    if report.suffix == ".html":
        texts = {report: page(found)}
    else:
        drawn = {report.with_suffix(".svg"): picture(found)}
        names = [path.name for path, text in drawn.items() if text]
        texts = {report: markdown(found, *names), **{path: text for path, text in drawn.items() if text}}
    for path, text in texts.items():
        with replacing(path) as target:
            target.write(text.encode())


def sides(models: list[Path], backends: list[str]) -> list[tuple[Path, str]]:
    """Two of them: what is named once holds for both."""
    paths = [hub.locate(model) for model in models] or [builtin_model()]
    names = backends or ["cpu"]
    if len(paths) > 2 or len(names) > 2 or (len(paths), len(names)) == (1, 1):
        raise ParameterError("Two models, or one model and two backends, are compared.", "bitnet compare A.gguf B.gguf")
    return list(zip(paths * (3 - len(paths)), names * (3 - len(names)), strict=False))[:2]


def to_json(found: Comparison) -> dict[str, Any]:
    distance = found.divergence
    return {
        "subjects": [of_subject(subject) for subject in found.subjects],
        "ratios": {test: found.ratio(test) for test in found.subjects[0].rates},
        "divergence": None
        if distance is None
        else {
            "mean": distance.mean,
            "stderr": distance.error,
            "median": distance.quantile(0.5),
            "p99": distance.quantile(0.99),
            "max": distance.quantile(1),
            "same_top": distance.agreement,
            "tokens": len(distance.kl),
        },
        "greedy": {"alike": found.alike, "written": found.written},
    }


def of_subject(subject: Subject) -> dict[str, Any]:
    quality = subject.perplexity
    return {
        "model": str(subject.path),
        "backend": subject.backend,
        "parameters": subject.parameters,
        "file_bytes": subject.file_bytes,
        "resident_bytes": subject.resident,
        "compile_s": subject.compile_s,
        "load_s": subject.load_s,
        "tokens_per_s": subject.rates,
        "perplexity": None if quality is None else quality.value,
        "bits_per_character": None if quality is None else quality.bits_per_character,
    }
