"""What the tuner tried, as a picture: thresholds against the error of outputs, and zeros against perplexity."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bitnet.bench.plot import FAINT, INK, SETTINGS, matplotlib, save
from bitnet.ternarize.quantize import Report
from bitnet.ternarize.search import GRID

# Okabe and Ito's colours, which colour-blind people tell apart.
KINDS = {
    "q_proj": "#0072B2",
    "k_proj": "#56B4E9",
    "v_proj": "#009E73",
    "o_proj": "#CC79A7",
    "gate_proj": "#E69F00",
    "up_proj": "#F0E442",
    "down_proj": "#D55E00",
}
RULES = {"absmean": ("s", "#E69F00"), "threshold 0.7": ("D", "#009E73"), "optimal": ("^", "#CC79A7")}
TUNED = "#0072B2"
APART = 0.01  # shares of zeros whose names do not cover each other


def draw(report: Report, source: str, path: Path) -> None:
    """Into an SVG or PNG file; for a report with trials."""
    with matplotlib().rc_context(SETTINGS):
        figure = import_module("matplotlib.figure").Figure(figsize=(12.8, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        errors(left, report)
        perplexities(right, report)
        shared = {"tensor": "tensor", "row": "row"}.get(str(report.rule.group), f"{report.rule.group} columns")
        figure.suptitle(f"{source} made ternary without training, a scale for each {shared}", fontsize=9, color=INK)
        save(figure, path)


def errors(axes: Any, report: Report) -> None:
    """A curve for each projection, a dot where it is lowest, and the mean of each kind."""
    frame(axes, "Each projection", "alpha: the threshold in means of |w|", "error of its outputs")
    for kind, colour in KINDS.items():
        curves = [found for name, found in report.found.items() if name.endswith(kind)]
        for found in curves:
            axes.plot(
                [p.alpha for p in found.points], [p.error for p in found.points], color=colour, lw=0.8, alpha=0.35
            )
        if curves:
            alphas = sorted(set.intersection(*({p.alpha for p in found.points} for found in curves)))
            at = [{p.alpha: p.error for p in found.points} for found in curves]
            means = [float(np.mean([each[alpha] for each in at])) for alpha in alphas]
            axes.plot(alphas, means, color=colour, lw=2.2, label=kind)
            best = [found.best for found in curves]
            axes.scatter([p.alpha for p in best], [p.error for p in best], s=22, color=colour, zorder=3)
    axes.set_xlim(0, 1.1 * max(GRID[-1], *(found.best.alpha for found in report.found.values())))
    percent(axes.yaxis)
    axes.legend(frameon=False, fontsize=8.5, ncols=2)


def perplexities(axes: Any, report: Report) -> None:
    """A point for each model that was tried; those of tuned thresholds are one line."""
    frame(axes, "The whole model", "weights that are zero", "perplexity on held-out text")
    trials = [t for t in report.trials if math.isfinite(t.perplexity)]
    tuned = sorted((t for t in trials if t.factor is not None), key=lambda t: t.sparsity)
    axes.plot(
        [t.sparsity for t in tuned], [t.perplexity for t in tuned], "o-", color=TUNED, lw=1.6, ms=5, label="tuned"
    )
    named = -1.0
    for t in tuned:
        if t.sparsity - named >= APART:
            axes.annotate(f"× {t.factor:g}", (t.sparsity, t.perplexity), (0, -18), **beside("center"))
            named = t.sparsity
    for t in trials:
        if t.factor is None:
            marker, colour = RULES.get(t.name, ("P", INK))
            axes.scatter([t.sparsity], [t.perplexity], s=52, marker=marker, color=colour, zorder=3, label=t.name)
    if report.kept is not None and report.kept in trials:
        best = report.kept
        axes.scatter([best.sparsity], [best.perplexity], s=190, facecolors="none", edgecolors=INK, label="kept")
    if report.before is not None:
        axes.axhline(report.before, color=INK, lw=1.2, ls=(0, (6, 3)))
        place = (1, report.before)
        axes.annotate(
            f"float: {shown(report.before)}", place, (-4, 4), xycoords=("axes fraction", "data"), **beside("right")
        )
    axes.set_yscale("log")
    percent(axes.xaxis)
    ticker = import_module("matplotlib.ticker")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: shown(value)))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.legend(frameon=False, fontsize=8.5)


def shown(perplexity: float) -> str:
    return f"{perplexity:,.0f}" if perplexity >= 100 else f"{perplexity:.3g}"


def beside(side: str) -> dict[str, Any]:
    return {"textcoords": "offset points", "ha": side, "fontsize": 8}


def frame(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set(xlabel=x, ylabel=y)
    axes.grid(which="major", color=FAINT, lw=0.6)


def percent(axis: Any) -> None:
    axis.set_major_formatter(import_module("matplotlib.ticker").PercentFormatter(1.0))
