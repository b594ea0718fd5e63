"""The figures of a server on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bitnet.monitor.history import Figures
from bitnet.monitor.watch import Watch

TICKS = "▁▂▃▄▅▆▇█"
WIDTH = 40  # of lines of ticks
CORES = 16  # that have a line of their own
NOT_TOLD = "not reported"
GIB = 2**30


def screen(watch: Watch) -> RenderableType:
    state, figures = watch.state, watch.state.figures
    style = "yellow" if state.error or watch.message() != "live" else "green"
    head = Text.assemble(("bitnet ", "bold"), (watch.url, "dim"), "  ", (watch.message(), style))
    if figures is None:
        return head
    facts = (figures.version, figures.isa, None if figures.uptime is None else f"up {duration(figures.uptime)}")
    head.append("  " + " · ".join(filter(None, facts)), "dim")
    return Group(head, "", engine(figures, watch.history.figures), "", machine(figures, watch.history.figures))


def engine(now: Figures, before: Sequence[Figures]) -> Table:
    table = rows()
    table.add_row("generated", rate(now.generation_rate), ticks([each.generation_rate for each in before]))
    table.add_row("prompts", rate(now.prompt_rate), ticks([each.prompt_rate for each in before]))
    running = f"{count(now.running)} running, {count(now.waiting)} waiting"
    table.add_row("requests", running, ticks([each.running for each in before]))
    for name, latency in (
        ("first token", now.time_to_first_token),
        ("between tokens", now.inter_token_latency),
        ("whole request", now.e2e_request_latency),
        ("in the queue", now.request_queue_time),
    ):
        shown = ", ".join(f"{q} {duration(value)}" for q, value in latency.items())
        table.add_row(name, shown or "none in the last minute")
    table.add_row("KV cache", share(now.kv_cache_usage), ticks([each.kv_cache_usage for each in before], 1.0))
    table.add_row("prefix hits", share(now.prefix_hit_ratio), ticks([each.prefix_hit_ratio for each in before], 1.0))
    ended = " · ".join(f"{value:.0f} {name}" for name, value in sorted(now.requests.items()) if value)
    table.add_row("ended", ended or "none")
    return table


def machine(now: Figures, before: Sequence[Figures]) -> Table:
    table = rows()
    loads = [mean(list(each.cpu.values())) for each in before]
    table.add_row("CPU", share(mean(list(now.cpu.values()))), ticks(loads, 1.0))
    for core, load in list(now.cpu.items())[:CORES]:
        table.add_row(f"  core {core}", share(load), bar(load))
    memory = NOT_TOLD
    if now.memory_used is not None and now.memory_total:
        memory = f"{now.memory_used / GIB:.2f} of {now.memory_total / GIB:.2f} GiB"
    table.add_row("memory", memory, ticks([each.memory_used for each in before], now.memory_total))
    table.add_row("server", NOT_TOLD if now.resident is None else f"{now.resident / GIB:.2f} GiB")
    table.add_row("temperature", each_of(now.temperature, "°C"))
    table.add_row("power", each_of(now.power, "W"))
    for name, left in now.battery.items():
        table.add_row(name, share(left))
    slow = [reason for reason, holds in now.throttled.items() if holds]
    if slow:
        table.add_row("slowed down", Text(", ".join(slow), "yellow"))
    return table


def rows() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=14)
    table.add_column(min_width=24)
    table.add_column(style="green", no_wrap=True)
    return table


def ticks(values: Sequence[float | None], top: float | None = None) -> str:
    """The latest values as heights; a gap where there was none."""
    latest = values[-WIDTH:]
    known = [value for value in latest if value is not None]
    highest = top or max(known, default=0.0)
    if not known or highest <= 0:
        return ""
    steps = len(TICKS) - 1
    return "".join(" " if v is None else TICKS[round(steps * min(1.0, max(0.0, v / highest)))] for v in latest)


def bar(part: float, width: int = 20) -> str:
    filled = round(width * min(1.0, max(0.0, part)))
    return "█" * filled + "░" * (width - filled)


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def count(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def rate(value: float | None) -> str:
    return "…" if value is None else f"{value:,.1f} tok/s"


def share(value: float | None) -> str:
    return NOT_TOLD if value is None else f"{100 * value:.0f} %"


def each_of(values: dict[str, float], unit: str) -> str:
    return ", ".join(f"{name} {value:.1f} {unit}" for name, value in values.items()) or NOT_TOLD


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
