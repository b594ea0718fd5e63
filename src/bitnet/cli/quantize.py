"""`bitnet quantize`: make the projections of a float model ternary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli.loading import StatusLine
from bitnet.cli.options import AsJson, Backend, Threads
from bitnet.cli.text import decoded, note
from bitnet.errors import ParameterError

if TYPE_CHECKING:
    from bitnet.quant.threshold import Group
    from bitnet.ternarize.quantize import Report

Replace = Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")]


def command(
    source: Annotated[Path, typer.Argument(help="GGUF file or Hugging Face folder.")],
    out: Annotated[Path, typer.Argument(help="GGUF file to write.")],
    rule: Annotated[
        str, typer.Option("--rule", help='"absmean", "threshold" (alpha times the mean of |w|) or "optimal".')
    ] = "absmean",
    alpha: Annotated[float, typer.Option("--alpha", min=0, help="Of the threshold.")] = 0.7,
    group: Annotated[
        str, typer.Option("--group", help='What shares a scale: "tensor", "row" or a number of columns, as 128.')
    ] = "tensor",
    dtype: Annotated[
        str, typer.Option("--type", help="Tensor type: tq2_0, tq1_0, i2_s, q2_0 ...; auto: what fits --group.")
    ] = "auto",
    embeddings: Annotated[str, typer.Option("--embeddings", help="Type of the embedding and the output head.")] = "f16",
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="PATTERN", help='Leave in float, as "layers.0.*"; repeatable.')
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="A text to measure perplexity on, and to tune on.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Search alpha for every projection on the calibration text.")
    ] = False,
    ctx: Annotated[int, typer.Option("--ctx", min=4, help="Tokens of a window of the calibration text.")] = 512,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="With --tune: draw the trade-off into this SVG or PNG file.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write everything found into this JSON file.")] = None,
    threads: Threads = 0,
    backend: Backend = "cpu",
    force: Replace = False,
    as_json: AsJson = False,
) -> None:
    import bitnet.formats
    from bitnet import backends
    from bitnet.bench.plot import check
    from bitnet.quant.threshold import Rule
    from bitnet.ternarize.quantize import Options, quantize

    if tune and (calibration is None or rule == "optimal"):
        raise ParameterError("--tune searches thresholds on a text.", "Give --calibration FILE, and no --rule.")
    if plot is not None:
        if not tune:
            raise ParameterError("--plot draws what --tune tried.", "Add --tune.")
        check(plot)
    if out.exists() and not force:
        raise ParameterError(f"{out} exists.", "Give another name, or --force to replace it.")
    if out.exists() and source.exists() and out.samefile(source):
        raise ParameterError(f"{out} is the source itself.", "Give another name.")
    text = decoded(calibration.read_bytes()) if calibration is not None else ""
    options = Options(
        Rule(rule, alpha, read_group(group)),  # type: ignore[arg-type]
        dtype,
        embeddings,  # type: ignore[arg-type]
        tuple(skip or ()),
        text,
        tune,
        ctx,
    )
    if backend == "cpu":
        backends.set_threads(threads)
    status = StatusLine()
    with bitnet.formats.open(source) as checkpoint:
        try:
            found = quantize(checkpoint, out, options, backends.make(backend), status.show)
        finally:
            status.clear()
    if report is not None:
        report.write_text(json.dumps(found.to_json(), indent=1), encoding="utf-8")
    if plot is not None:
        from bitnet.ternarize.plot import draw

        draw(found, source.name, plot)
    if as_json:
        print(json.dumps({"source": str(source), "out": str(out), **found.to_json()}))
    else:
        show(found)
    for line in warnings(found):
        note(line)


def read_group(given: str) -> Group:
    if given in ("tensor", "row"):
        return given  # type: ignore[return-value]
    if given.isdecimal() and int(given):
        return int(given)
    raise ParameterError(f"--group is {given!r}; expected tensor, row or a number of columns.")


def show(found: Report) -> None:
    from rich.table import Table

    from bitnet.cli.inspection_tables import pipeable

    console = pipeable()
    table = Table(title=f"Projections as {found.dtype}", title_justify="left", box=None, pad_edge=False)
    for name in ("projection", "alpha", "zeros", "error", "output error", "mean scale", ""):
        table.add_column(name, justify="left" if name in ("projection", "") else "right")
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    if found.trials:
        table = Table(title="\nWhole models, on held-out text", title_justify="left", box=None, pad_edge=False)
        for name in ("thresholds", "zeros", "output error", "perplexity", ""):
            table.add_column(name, justify="left" if name in ("thresholds", "") else "right")
        for t in found.trials:
            kept = "kept" if t is found.kept else ""
            table.add_row(t.name, share(t.sparsity), share(t.error), f"{t.perplexity:.4g}", kept)
        console.print(table)
    console.print()
    console.print(totals(found), soft_wrap=True)


def rows(found: Report) -> list[tuple[str, ...]]:
    """A line for each projection. output error: of the tuner's best alpha for it."""
    made: list[tuple[str, ...]] = []
    for projection, statistics, choice in found.rows:
        name = projection.name.removeprefix("layers.")
        if statistics is None:
            made.append((name, "", "", "", "", "", {"kept": "left in float"}.get(projection.state, "ternary already")))
            continue
        tuned = choice is not None and choice.rule.name == "threshold" and not statistics.exact
        alpha = f"{choice.rule.alpha:.3f}" if tuned and choice is not None else ""
        output = share(found.found[projection.name].best.error) if projection.name in found.found else ""
        numbers = (alpha, share(statistics.sparsity), share(statistics.error), output, f"{statistics.scale:.3g}")
        made.append((name, *numbers, "ternary already" if statistics.exact else ""))
    return made


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def totals(found: Report) -> str:
    """Over all weights that were rounded."""
    made = [s for _, s, _ in found.rows if s is not None]
    weights = sum(s.weights for s in made)
    if not weights:
        return "No projection was float: all keep their codes."
    zeros = sum(s.sparsity * s.weights for s in made) / weights
    error = sum(s.error * s.weights for s in made) / weights
    kept = sum(p.state == "ternary" for p, _, _ in found.rows) + sum(s.exact for s in made)
    already = f"; {kept} of {len(found.rows)} projections were ternary already and keep their codes" if kept else ""
    return f"{weights:,} weights, {share(zeros)} of them zero, error {share(error)}{already}."


def warnings(found: Report) -> list[str]:
    """What rounding without training does to a model, and what to do instead."""
    states = {p.state for p, s, _ in found.rows if s is not None and not s.exact}
    measured = ""
    if found.before is not None and found.after is not None:
        measured = f" Perplexity {found.before:.4g} -> {found.after:.4g} on {found.tokens:,} tokens."
    if "float" in states:
        return [
            "This model was not trained to be ternary: expect its quality to be destroyed."
            f"{measured}\nTraining makes ternary models that work: bitnet train"
        ]
    departs = (found.rule.name, found.rule.group) != ("absmean", "tensor") or found.trials
    if "master" in states and departs:
        return [f"This model was trained with absmean and a scale for each tensor: any other rule harms it.{measured}"]
    return [measured.strip()] if measured else []
