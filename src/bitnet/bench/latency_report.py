"""Latencies for people: tables, histograms in letters and as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple
from importlib import import_module
from pathlib import Path
from typing import Any

from bitnet.bench.latency import Latency, Spread, histogram
from bitnet.bench.plot import FAINT, INK, SETTINGS, STYLES, counted, matplotlib, save
from bitnet.bench.report import as_json, json_lines
from bitnet.bench.tables import Row, table

COLUMNS = ("model", "engine", "threads", "test", "latency in ms", "mean", "p50", "p95", "p99", "max")
BARS = 60
QUANTILES = (("p50", "-"), ("p95", "--"), ("p99", ":"))


def markdown(results: Iterable[Latency]) -> Iterator[str]:
    known = list(results)
    rows = [
        row(each, what, getattr(each, name))
        for each in known
        for name, what in (("first", "first token"), ("token", "each later token"))
    ]
    yield from table("Latency", COLUMNS, rows)
    for each in known:
        yield f"\n{title(each)}: {len(each.token_ms):,} tokens\n"
        yield from (f"    {line}" for line in histogram(each.token_ms))
    yield f"\n{known[0].isa} on {known[0].cpu_info}"
    yield from (f"note: {note}" for note in dict.fromkeys(note for each in known for note in each.notes))


def row(found: Latency, what: str, spread: Spread) -> Row:
    numbers = (f"{value:.2f}" for value in astuple(spread))
    return (found.model, found.engine, str(found.threads), found.test, what, *numbers)


def title(found: Latency) -> str:
    return f"{found.model}, {found.engine}, {counted(found.threads)}, {found.test}"


def draw(results: Sequence[Latency], path: Path) -> None:
    """A histogram of each, under one another, with the same axis of time for all."""
    with matplotlib().rc_context(SETTINGS):
        figure = import_module("matplotlib.figure").Figure(figsize=(6.4, 2.9 * len(results)), layout="constrained")
        panels = figure.subplots(len(results), 1, squeeze=False, sharex=True)[:, 0]
        for axes, found, (colour, _) in zip(panels, results, STYLES * len(results), strict=False):
            panel(axes, found, colour)
        panels[-1].set_xlabel("milliseconds a token")
        save(figure, path)


def panel(axes: Any, found: Latency, colour: str) -> None:
    """Counts on a logarithmic axis too: what matters is rare."""
    low, high = min(found.token_ms), max(found.token_ms)
    ratio = max(high / low, 1.01) ** (1 / BARS)
    axes.hist(found.token_ms, [low * ratio**i for i in range(BARS)] + [max(high, low * ratio**BARS)], color=colour)
    axes.set(xscale="log", yscale="log")
    ticker = import_module("matplotlib.ticker")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}" if high < 5 * low else ""))
    axes.grid(which="major", axis="y", color=FAINT, lw=0.6)
    axes.set_title(title(found), loc="left", fontsize=10)
    axes.set_ylabel("tokens")
    for name, dashes in QUANTILES:
        value = getattr(found.token, name)
        axes.axvline(value, color=INK, lw=1.2, ls=dashes, label=f"{name} {value:.2f} ms")
    axes.legend(frameon=False, fontsize=8.5)


FORMATS = {"md": markdown, "json": as_json, "jsonl": json_lines}
