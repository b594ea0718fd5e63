"""A comparison for people: markdown with a picture beside it, or a page of HTML that needs nothing beside it."""

from __future__ import annotations

import html
import io
import statistics
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from bitnet.bench.plot import INK, SETTINGS, STYLES
from bitnet.evaluate.comparison import Comparison, Subject

Panel = Callable[[Any], None]  # draws on axes
Row = tuple[str, ...]  # what, the base's, the other's, one of the other
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: right; padding: .3rem .9rem; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots svg { max-width: 100%; height: auto; }
"""


def rows(found: Comparison) -> Iterator[Row]:
    base, other = found.subjects
    yield "backend", base.backend, other.backend, ""
    yield pair("parameters", base, other, lambda s: s.parameters, lambda n: f"{n / 1e6:,.1f} M")
    yield pair("file", base, other, lambda s: s.file_bytes, mebibytes)
    if base.resident and other.resident:
        yield pair("weights in memory", base, other, lambda s: s.resident, mebibytes)
    if base.compile_s or other.compile_s:
        yield "compiled in", *(f"{s.compile_s:.1f} s" if s.compile_s else "" for s in found.subjects), ""
    if base.load_s and other.load_s:
        yield pair("load", base, other, lambda s: s.load_s, lambda seconds: f"{seconds:.2f} s")
    for test in base.rates:
        rates = (f"{statistics.mean(s.rates[test]):.2f} ± {spread(s.rates[test]):.2f} t/s" for s in found.subjects)
        yield f"{test}", *rates, f"{found.ratio(test):.2f}×"
    qualities = [subject.perplexity for subject in found.subjects if subject.perplexity]
    if len(qualities) == 2:
        base_quality, quality = qualities
        values = (f"{each.value:.4f} ± {each.error:.4f}" for each in qualities)
        yield "perplexity", *values, f"{quality.value / base_quality.value:.4f}×"
        yield numbers("bits per character", *(each.bits_per_character for each in qualities))


def findings(found: Comparison) -> Iterator[str]:
    """What is known of both at once, a sentence each."""
    distance = found.divergence
    if distance is not None:
        median, most, largest = (f"{distance.quantile(share):.3g}" for share in (0.5, 0.99, 1.0))
        mean = f"mean {distance.mean:.3g} ± {distance.error:.1g} nats"
        shape = f"median {median}, 99 % below {most}, largest {largest}"
        yield f"KL(base ‖ other): {mean}, {shape}; {len(distance.kl):,} tokens."
        yield f"The same likeliest token at {100 * distance.agreement:.2f} % of the places."
    elif found.subjects[0].perplexity:
        yield "Their tokens differ: perplexities cannot be compared, bits per character can."
    yield f"Greedy text the same for {found.alike} of {found.written} tokens, each counted to the first difference."


def pair(name: str, base: Subject, other: Subject, value: Callable[[Subject], Any], show: Callable[[Any], str]) -> Row:
    a, b = value(base), value(other)
    return name, show(a), show(b), f"{b / a:.2f}×" if a else ""


def numbers(name: str, base: float, other: float) -> Row:
    return name, f"{base:.4f}", f"{other:.4f}", f"{other / base:.4f}×" if base else ""


def mebibytes(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB"


def spread(rates: list[float]) -> float:
    return statistics.stdev(rates) if len(rates) > 1 else 0.0


def titles(found: Comparison) -> tuple[str, str]:
    """What tells the two apart."""
    base, other = found.subjects
    if base.path.name != other.path.name:
        return base.path.name, other.path.name
    return (base.backend, other.backend) if base.path == other.path else (str(base.path), str(other.path))


def markdown(found: Comparison, picture: str = "") -> str:
    """picture: the name of one beside it; "" where there is none."""
    a, b = titles(found)
    lines = [f"| | {a} | {b} | ratio |", "|---|--:|--:|--:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(found)]
    lines += ["", *(f"- {each}" for each in findings(found))]
    return "\n".join([*lines, *(["", f"![speed, memory and divergence]({picture})"] if picture else [])]) + "\n"


def page(found: Comparison) -> str:
    a, b = titles(found)
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows(found))
    table = "\n".join(f"<tr>{row}</tr>" for row in cells)
    notes = "\n".join(f"<li>{html.escape(each)}</li>" for each in findings(found))
    head = "".join(f"<th>{html.escape(each)}</th>" for each in ("", a, b, "ratio"))
    title = html.escape(f"{a} and {b}")
    plots = "\n".join(inline([each]) for each in panels(found))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{title}</h1>\n<table><thead><tr>{head}</tr></thead>\n<tbody>\n{table}\n</tbody></table>\n"
        f'<ul>\n{notes}\n</ul>\n<div class="plots">\n{plots}\n</div>\n</body></html>\n'
    )


def panels(found: Comparison) -> list[Panel]:
    """What draws each of the plots; none without matplotlib."""
    if find_spec("matplotlib") is None:
        return []
    names = titles(found)
    drawn: list[Panel] = []
    for test in found.subjects[0].rates:
        rates = [subject.rates[test] for subject in found.subjects]
        drawn.append(partial(bars, names, rates, f"{test}, tokens per second"))
    resident = [subject.resident for subject in found.subjects if subject.resident]
    if len(resident) == 2:
        drawn.append(partial(bars, names, [[each / 2**20] for each in resident], "weights in memory, MiB"))
    if found.divergence is not None:
        drawn.append(partial(spreads, found.divergence.kl.tolist()))
    return drawn


def picture(found: Comparison) -> str:
    """All plots as one SVG; "" without matplotlib."""
    drawn = panels(found)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{inline(drawn)}' if drawn else ""


def inline(drawn: Sequence[Panel]) -> str:
    """Two in a row."""
    rows, columns = -(-len(drawn) // 2), min(len(drawn), 2)
    with import_module("matplotlib").rc_context(SETTINGS):
        size = (4.6 * columns, 3.0 * rows)
        figure = import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, panel in zip(places, drawn, strict=False):
            panel(axes)
        for axes in places[len(drawn) :]:
            axes.set_axis_off()
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def bars(names: Sequence[str], values: Sequence[list[float]], title: str, axes: Any) -> None:
    """One of each model from 0 up, with its mean written at it and its spread as a line."""
    means = [statistics.mean(each) for each in values]
    colours = [colour for colour, _ in STYLES[: len(names)]]
    drawn = axes.barh(names, means, 0.6, xerr=[spread(each) for each in values], color=colours, ecolor=INK)
    axes.bar_label(drawn, [f" {mean:,.1f}" for mean in means], color=INK)
    axes.set_title(title, loc="left", fontsize=10)
    axes.invert_yaxis()  # the base above
    axes.margins(x=0.2)


def spreads(kl: Sequence[float], axes: Any) -> None:
    shares = [(i + 1) / len(kl) for i in range(len(kl))]
    axes.plot([max(value, 1e-8) for value in sorted(kl)], shares, color=STYLES[0][0])
    axes.set(xscale="log", xlabel="nats", ylabel="share of tokens below", ylim=(0, 1))
    axes.set_title("KL(base ‖ other) of a token", loc="left", fontsize=10)
