"""The figures of a server on a terminal, as many as fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console, ConsoleOptions
from rich.text import Text

from bitnet.monitor.history import Figures
from bitnet.monitor.watch import State

TICKS = "▁▂▃▄▅▆▇█"
NAMES, NARROWEST, WIDEST = 16, 8, 60  # columns of names, of a graph at least, at most
NOT_TOLD = "not reported"
GIB, GHZ = 2**30, 1e9


class Row(NamedTuple):
    """line: what is drawn of each moment, `top` being the highest there can be. share: how much of a bar is filled."""

    name: str
    value: str
    line: Callable[[Figures], float | None] | None = None
    top: float | None = None
    share: float | None = None
    style: str = ""


class Screen:
    """For rich, which knows the width. height: lines at most, or None for all."""

    def __init__(self, state: State, url: str, height: int | None = None) -> None:
        self._state, self._url, self._height = state, url, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        first, *said = header(self._state, self._url)
        head = [first, *(line for text in said for line in text.wrap(console, options.max_width))]
        below = None if self._height is None else self._height - len(head)
        for line in [*head, *body(self._state.figures, options.max_width, below)][: self._height]:
            line.truncate(options.max_width, overflow="ellipsis")
            line.no_wrap = True
            yield line


def header(state: State, url: str) -> list[Text]:
    style = "yellow" if state.error or state.restarted else "green"
    lines = [Text.assemble(("bitnet ", "bold"), printable(url)), Text(printable(state.message), style)]
    if state.error is not None and state.error.hint:
        lines.append(Text(printable(state.error.hint), "dim"))
    if state.now is not None:
        now = state.now
        facts = (now.version, now.isa, None if now.uptime is None else f"up {duration(now.uptime)}")
        lines[0].append(printable("  " + " · ".join(filter(None, facts))), "dim")
    return lines


def body(figures: Sequence[Figures], width: int, height: int | None) -> list[Text]:
    if not figures:
        return []
    now = figures[-1]
    first, second, each_core = engine(now), machine(now), cores(now)
    free = 10**6 if height is None else height - len(first) - len(second)
    # Where not every core gets its line, all share one.
    second += each_core if len(each_core) <= free else [Row("each core", ticks(list(now.cpu.values()), 1.0))]
    gap = [Row("", "")] if free - len(each_core) >= 2 else []
    rows = [*gap, *first, *gap, *second]
    values = max(len(row.value) for row in rows if row.line or row.share is not None)
    graph = min(WIDEST, width - NAMES - values - 2)
    return [drawn(row, figures, values, graph) for row in rows]


def drawn(row: Row, figures: Sequence[Figures], values: int, graph: int) -> Text:
    line = Text.assemble((row.name.ljust(NAMES), "dim"), (printable(row.value), row.style))
    if graph >= NARROWEST and (row.line or row.share is not None):
        line.pad_right(values - len(row.value) + 2)
        shown = [row.line(each) for each in figures[-graph:]] if row.line else []
        line.append(ticks(shown, row.top) if row.share is None else bar(row.share, min(20, graph)), "green")
    return line


def engine(now: Figures) -> list[Row]:
    latencies = (
        ("first token", now.time_to_first_token),
        ("between tokens", now.inter_token_latency),
        ("whole request", now.e2e_request_latency),
        ("in the queue", now.request_queue_time),
    )
    ended = " · ".join(f"{value:.0f} {name}" for name, value in sorted(now.requests.items()) if value)
    running = f"{count(now.running)} running, {count(now.waiting)} waiting"
    return [
        Row("generated", rate(now.generation_rate), lambda each: each.generation_rate),
        Row("prompts", rate(now.prompt_rate), lambda each: each.prompt_rate),
        Row("requests", running, lambda each: each.running),
        *(Row(name, ", ".join(f"{q} {duration(s)}" for q, s in found.items()) or "–") for name, found in latencies),
        Row("KV cache", share(now.kv_cache_usage), lambda each: each.kv_cache_usage, 1.0),
        Row("prefix hits", share(now.prefix_hit_ratio, "–"), lambda each: each.prefix_hit_ratio, 1.0),
        Row("ended", ended or "none"),
    ]


def machine(now: Figures) -> list[Row]:
    memory = NOT_TOLD
    if now.memory_used is not None and now.memory_total:
        memory = f"{now.memory_used / GIB:.2f} of {now.memory_total / GIB:.2f} GiB"
    slow = ", ".join(reason for reason, holds in now.throttled.items() if holds)
    return [
        *([Row("slowed down", slow, style="yellow")] if slow else []),
        Row("CPU", share(mean(now.cpu.values())), lambda each: mean(each.cpu.values()), 1.0),
        Row("memory", memory, lambda each: each.memory_used, now.memory_total),
        Row("server", NOT_TOLD if now.resident is None else f"{now.resident / GIB:.2f} GiB"),
        Row("temperature", each_of(now.temperature, "°C")),
        Row("power", each_of(now.power, "W")),
        Row("frequency", spread([hertz / GHZ for hertz in now.frequency.values()], "GHz")),
        *(Row(name, share(left)) for name, left in now.battery.items()),
    ]


def cores(now: Figures) -> list[Row]:
    return [Row(f"  core {core}", share(load), share=load) for core, load in now.cpu.items()]


def ticks(values: Sequence[float | None], top: float | None = None) -> str:
    """Values as heights; a gap where there was none."""
    known = [value for value in values if value is not None]
    highest = top or max(known, default=0.0)
    if not known or highest <= 0:
        return ""
    steps = len(TICKS) - 1
    return "".join(" " if v is None else TICKS[round(steps * min(1.0, max(0.0, v / highest)))] for v in values)


def bar(part: float, width: int) -> str:
    filled = round(width * min(1.0, max(0.0, part)))
    return "█" * filled + "░" * (width - filled)


def mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def count(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def rate(value: float | None) -> str:
    return "…" if value is None else f"{value:,.1f} tok/s"


def share(value: float | None, absent: str = NOT_TOLD) -> str:
    return absent if value is None else f"{100 * value:.0f} %"


def each_of(values: Mapping[str, float], unit: str) -> str:
    """The highest first, as the rest may not fit."""
    highest = sorted(values.items(), key=lambda each: -each[1])
    return ", ".join(f"{name} {value:.1f} {unit}" for name, value in highest) or NOT_TOLD


def spread(values: Sequence[float], unit: str) -> str:
    if not values:
        return NOT_TOLD
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def printable(text: str) -> str:
    """What a server says of itself must not steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)
