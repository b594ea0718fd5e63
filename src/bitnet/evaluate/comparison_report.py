"""A comparison for people: markdown, or a page of HTML that needs nothing beside it."""

from __future__ import annotations

import html
import io
import statistics
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from bitnet.bench.plot import INK, SETTINGS, STYLES
from bitnet.evaluate.comparison import Comparison, Subject

Row = tuple[str, ...]  # what, the base's, the other's, one of the other
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: right; padding: .3rem .9rem; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
"""


def rows(found: Comparison) -> Iterator[Row]:
    base, other = found.subjects
    yield "backend", base.backend, other.backend, ""
    yield pair("parameters", base, other, lambda s: s.parameters, lambda n: f"{n / 1e6:,.1f} M")
    yield pair("file", base, other, lambda s: s.file_bytes, mebibytes)
    if base.resident and other.resident:
        yield pair("weights in memory", base, other, lambda s: s.resident, mebibytes)
    if base.load_s and other.load_s:
        yield pair("load", base, other, lambda s: s.load_s, lambda seconds: f"{seconds:.2f} s")
    for test in base.rates:
        rates = (f"{statistics.mean(s.rates[test]):.2f} ± {spread(s.rates[test]):.2f} t/s" for s in found.subjects)
        yield f"{test}", *rates, f"{found.ratio(test):.2f}×"
    qualities = [subject.perplexity for subject in found.subjects if subject.perplexity]
    if len(qualities) == 2:
        yield numbers("perplexity", *(each.value for each in qualities))
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
    return name, f"{base:.4f}", f"{other:.4f}", f"{other / base:.2f}×" if base else ""


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


def markdown(found: Comparison) -> str:
    a, b = titles(found)
    lines = [f"| | {a} | {b} | ratio |", "|---|--:|--:|--:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(found)]
    return "\n".join([*lines, "", *(f"- {each}" for each in findings(found))]) + "\n"


def page(found: Comparison) -> str:
    a, b = titles(found)
    cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows(found))
    table = "\n".join(f"<tr>{row}</tr>" for row in cells)
    notes = "\n".join(f"<li>{html.escape(each)}</li>" for each in findings(found))
    head = "".join(f"<th>{html.escape(each)}</th>" for each in ("", a, b, "ratio"))
    title = html.escape(f"{a} and {b}")
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{STYLE}</style></head>\n"
        f"<body>\n<h1>{title}</h1>\n<table><thead><tr>{head}</tr></thead>\n<tbody>\n{table}\n</tbody></table>\n"
        f"<ul>\n{notes}\n</ul>\n{picture(found)}\n</body></html>\n"
    )


def picture(found: Comparison) -> str:
    """Speeds beside each other and how the divergence is spread, as SVG; nothing without matplotlib."""
    try:
        matplotlib = import_module("matplotlib")
    except ImportError:
        return ""
    with matplotlib.rc_context(SETTINGS):
        panels = [speeds] + [spreads] * (found.divergence is not None)
        figure = import_module("matplotlib.figure").Figure(figsize=(5.2 * len(panels), 3.6), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes, found)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def speeds(axes: Any, found: Comparison) -> None:
    tests = list(found.subjects[0].rates)
    for i, (subject, name, (colour, _)) in enumerate(zip(found.subjects, titles(found), STYLES, strict=False)):
        heights = [statistics.mean(subject.rates[test]) for test in tests]
        errors = [spread(subject.rates[test]) for test in tests]
        places = [place + 0.4 * i for place in range(len(tests))]
        axes.bar(places, heights, 0.36, yerr=errors, color=colour, ecolor=INK, label=name)
    axes.set_xticks([place + 0.2 for place in range(len(tests))], tests)
    axes.set(yscale="log", ylabel="tokens per second")
    axes.legend(frameon=False)


def spreads(axes: Any, found: Comparison) -> None:
    assert found.divergence is not None
    kl = sorted(found.divergence.kl)
    shares = [(i + 1) / len(kl) for i in range(len(kl))]
    axes.plot([max(value, 1e-8) for value in kl], shares, color=STYLES[0][0])
    axes.set(xscale="log", xlabel="KL(base ‖ other) of a token, nats", ylabel="share of tokens below", ylim=(0, 1))
