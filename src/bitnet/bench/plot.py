"""The results as a picture: what was reached, and the bounds that the run itself measured.

Generating is bound by the bytes that a token reads, prompts by their arithmetic, so each has a panel of its own. The
colours are Okabe and Ito's, which colour-blind people tell apart; there is no background and everything else is of
middle lightness, so that a page may be light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bitnet.bench.results import Result
from bitnet.errors import ParameterError

Styles = dict[str, tuple[str, str]]  # label -> colour, marker
SUFFIXES = (".svg", ".png")
INK, FAINT = "#808080", "#80808040"
STYLES = (  # ours, then the peers in the order in which they come
    ("#0072B2", "o"),
    ("#E69F00", "s"),
    ("#D55E00", "D"),
    ("#009E73", "^"),
    ("#CC79A7", "v"),
    ("#56B4E9", "P"),
)
SETTINGS = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "bitnet",  # the same results give the same file
}


def check(path: Path) -> None:
    """ParameterError where nothing could be drawn into `path`, ImportError without matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise ParameterError(f"--plot is {path}; expected a file that ends in {' or '.join(SUFFIXES)}.")
    if not path.parent.is_dir():
        raise ParameterError(f"{path} is in a directory that does not exist.")
    matplotlib()


def matplotlib() -> Any:
    try:
        return import_module("matplotlib")
    except ImportError:
        raise ParameterError("--plot needs matplotlib.", "Install it: pip install 'bitnet[plot]'") from None


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw a panel for generating and one for prompts, as far as there are such results, into an SVG or PNG file."""
    decodes = [r for r in results if r.bytes_per_token]
    prompts = [r for r in results if r.n_prompt and not r.n_gen]
    panels = [panel for panel, found in ((generating, decodes), (reading, prompts)) if found]
    if not panels:
        raise ParameterError("There is nothing to draw: no result of a prompt or of generating alone.")
    with matplotlib().rc_context(SETTINGS):
        figure = import_module("matplotlib.figure").Figure(figsize=(6.4 * len(panels), 5.4), layout="constrained")
        styles = dict(zip(dict.fromkeys(r.label for r in results), STYLES * 4, strict=False))
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes, decodes if panel is generating else prompts, styles)
        first = results[0]
        figure.suptitle(f"bitnet {first.build_commit}, {first.isa} on {first.cpu_info}", fontsize=9, color=INK)
        turn(figure)
        save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Without a date or a program in it: the same results give the same file."""
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {"Software": None}
    figure.savefig(path, dpi=160, transparent=True, metadata=metadata)


def generating(axes: Any, results: Sequence[Result], styles: Styles) -> None:
    """Below the hyperbolas rate = bandwidth / bytes, which are lines here."""
    frame(axes, "Generating", "MB that a token reads (weights and cache)", "tokens per second")
    points(axes, results, styles, lambda r: (r.bytes_per_token or 1) / 1e6)
    name(axes, results, lambda r: (r.bytes_per_token or 1) / 1e6, depths=True)
    left, right = axes.get_xlim()
    bounds = {r.n_threads: r.read_gb_per_s * 1e3 for r in results if r.read_gb_per_s}
    for threads, rate in sorted(bounds.items(), reverse=True):
        dashes = "-" if threads == max(bounds) else (0, (6, 3))
        label = f"read bandwidth, {counted(threads)}: {rate / 1e3:.1f} GB/s"
        axes.plot([left, right], [rate / left, rate / right], color=INK, lw=1.2, ls=dashes, zorder=1, label=label)
    axes.set_xlim(left, right)
    legend(axes, results)


def reading(axes: Any, results: Sequence[Result], styles: Styles) -> None:
    """Over lines of equal arithmetic, for its bound is not measured."""
    frame(axes, "Reading a prompt", "10⁹ multiply-adds for a token (layers)", "tokens per second")
    points(axes, results, styles, lambda r: r.multiply_adds_per_token / 1e9)
    name(axes, results, lambda r: r.multiply_adds_per_token / 1e9, depths=False)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for exponent in range(math.floor(math.log10(left * bottom)), math.ceil(math.log10(right * top)) + 1):
        rate = 10.0**exponent  # of 10⁹ multiply-adds a second
        axes.plot([left, right], [rate / left, rate / right], color=INK, lw=0.8, ls=(0, (2, 4)), zorder=1)
        if bottom < rate / right < top / 3:  # its name runs up and to the left
            text = f"{rate:,.0f} GMAC/s" if rate >= 1 else f"{rate:g} GMAC/s"
            options = {"ha": "right", "va": "bottom", "fontsize": 8, "rotation_mode": "anchor"}
            axes.annotate(text, (right, rate / right), (-4, 4), textcoords="offset points", **options)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    legend(axes, results)


def frame(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axes.grid(which="major", color=FAINT, lw=0.6)
    ticker = import_module("matplotlib.ticker")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
        axis.set_minor_formatter(ticker.NullFormatter())


def points(axes: Any, results: Sequence[Result], styles: Styles, x: Callable[[Result], float]) -> None:
    """One for each result; hollow where fewer threads than the most were at work. Leaves room around them."""
    most = max(r.n_threads for r in results)
    for label in dict.fromkeys(r.label for r in results):
        colour, marker = styles[label]
        for full in (True, False):
            these = [r for r in results if r.label == label and (r.n_threads == most) == full]
            axes.scatter(
                [x(r) for r in these],
                [r.avg_ts for r in these],
                s=52,
                marker=marker,
                facecolors=colour if full else "none",
                edgecolors=colour,
                linewidths=1.4,
                zorder=3,
                label=label if full else "",
            )
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    axes.set(xlim=(left / 2.2, right * 2.4), ylim=(bottom / 2, top * 2.2))


def name(axes: Any, results: Iterable[Result], x: Callable[[Result], float], depths: bool) -> None:
    """The model (and depth) beside the fastest of our points: one name is enough for those that lie together."""
    best: dict[str, Result] = {}
    for r in results:
        text = f"{r.model} @ {r.n_depth}" if depths and r.n_depth else r.model
        if r.engine == "bitnet" and (text not in best or r.avg_ts > best[text].avg_ts):
            best[text] = r
    shift, side = ((8, 5), "left") if depths else ((-8, 5), "right")
    for text, r in best.items():
        axes.annotate(text, (x(r), r.avg_ts), shift, textcoords="offset points", ha=side, fontsize=8.5, zorder=4)


def legend(axes: Any, results: Iterable[Result]) -> None:
    *fewer, most = sorted({r.n_threads for r in results})
    hollow = f"; hollow: {' or '.join(map(str, fewer))}" if fewer else ""
    axes.legend(
        loc="lower left",
        frameon=False,
        fontsize=8.5,
        title=counted(most) + hollow,
        title_fontsize=8.5,
        alignment="left",
    )


def turn(figure: Any) -> None:
    """Turn the names of the lines into the direction of slope -1, which is known once everything has its place."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        (x0, y0), (x1, y1) = axes.transData.transform([(1, 10), (10, 1)])
        for text in axes.texts:
            if text.get_rotation_mode() == "anchor":
                text.set_rotation(math.degrees(math.atan2(y1 - y0, x1 - x0)))


def counted(threads: int) -> str:
    return f"{threads} thread" if threads == 1 else f"{threads} threads"
