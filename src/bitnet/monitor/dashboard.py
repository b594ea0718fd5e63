"""What `bitnet monitor` shows. Streamlit runs this file anew at each visit; the history is kept for all visitors."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from bitnet.monitor.history import Figures
from bitnet.monitor.screen import NOT_TOLD, count, duration, mean, share
from bitnet.monitor.watch import Watch

URL = os.environ.get("BITNET_MONITOR_URL", "http://127.0.0.1:8080")
INTERVAL = float(os.environ.get("BITNET_MONITOR_INTERVAL", "2"))
GIB = 2**30
COLOURS = ("#0b8375", "#c07a1f", "#7a7568", "#4f6fb5", "#a5443a")
PERCENTILES = ("p50", "p95")
Lines = dict[str, list[float | None]]


@st.cache_resource
def watched() -> Watch:
    """One for all visitors, and its history goes on while there is none."""
    watch = Watch(URL, os.environ.get("BITNET_MONITOR_KEY", ""))
    watch.ask()

    def ask() -> None:
        while True:
            time.sleep(INTERVAL)
            watch.ask()

    threading.Thread(target=ask, daemon=True).start()
    return watch


@st.fragment(run_every=INTERVAL)
def page() -> None:
    state = watched().state
    if state.error is not None:
        st.warning(f"{state.message} {state.error.hint}", icon=":material/cloud_off:")
    elif state.restarted is not None:
        st.info(state.message, icon=":material/restart_alt:")
    if state.now is None:
        st.caption("Figures appear as soon as the server answers.")
        return
    summary(state.now)
    if len(state.figures) < 2:
        st.caption("Charts begin with the second answer.")
        return
    charts(state.figures, state.restarts)


def summary(now: Figures) -> None:
    facts = (now.version, now.isa, None if now.uptime is None else f"up {duration(now.uptime)}")
    st.caption(" · ".join([URL, *filter(None, facts)]))
    first = now.time_to_first_token.get("p50")
    memory = NOT_TOLD if now.memory_used is None else f"{now.memory_used / GIB:.2f} GiB"
    hottest = max(now.temperature.values(), default=None)
    told = (
        ("Generated", "…" if now.generation_rate is None else f"{now.generation_rate:,.1f} tok/s"),
        ("First token, p50", "–" if first is None else duration(first)),
        ("Running / waiting", f"{count(now.running)} / {count(now.waiting)}"),
        ("KV cache", share(now.kv_cache_usage)),
        ("CPU", share(mean(now.cpu.values()))),
        ("Memory", memory),
        ("Temperature", NOT_TOLD if hottest is None else f"{hottest:.1f} °C"),
        ("Power", ", ".join(f"{watts:.1f} W" for watts in list(now.power.values())[:1]) or NOT_TOLD),
    )
    for row in (told[:4], told[4:]):
        for column, (name, value) in zip(st.columns(4), row, strict=True):
            column.metric(name, value)


def charts(figures: Sequence[Figures], restarts: Sequence[float]) -> None:
    history = with_gaps(figures)
    latencies = {
        "Time to first token, ms": "time_to_first_token",
        "Between tokens, ms": "inter_token_latency",
        "Whole request, ms": "e2e_request_latency",
        "In the queue, ms": "request_queue_time",
    }
    shown: dict[str, Lines] = {
        "Throughput, tok/s": {
            "generated": [each.generation_rate for each in history],
            "prompts": [each.prompt_rate for each in history],
        },
        "Requests": {
            "running": [each.running for each in history],
            "waiting": [each.waiting for each in history],
        },
        **{
            title: {p: [scaled(getattr(each, name).get(p), 1000) for each in history] for p in PERCENTILES}
            for title, name in latencies.items()
        },
        "Caches, %": {
            "KV in use": [scaled(each.kv_cache_usage, 100) for each in history],
            "prefix hits": [scaled(each.prefix_hit_ratio, 100) for each in history],
        },
        "CPU, % of each core": labelled(history, "cpu", 100, "core "),
        "Memory, GiB": {
            "in use": [scaled(each.memory_used, 1 / GIB) for each in history],
            "the server": [scaled(each.resident, 1 / GIB) for each in history],
        },
        "Temperature, °C": labelled(history, "temperature"),
        "Power, W": labelled(history, "power"),
        "CPU frequency, GHz": labelled(history, "frequency", 1e-9, "core "),
    }
    times = [datetime.fromtimestamp(each.time) for each in history]
    for i, (title, lines) in enumerate(shown.items()):
        if i % 2 == 0:
            columns = st.columns(2)  # a row of its own for each pair, and in a narrow window one below the other
        with columns[i % 2]:
            chart(title, times, lines, [datetime.fromtimestamp(each) for each in restarts])


def with_gaps(figures: Sequence[Figures]) -> list[Figures]:
    """With figures of nothing where the server did not answer for a while, so that no line leads across."""
    found = list(figures[:1])
    for before, now in pairwise(figures):
        if now.time - before.time > max(5.0, 3 * INTERVAL):
            found.append(Figures(time=(before.time + now.time) / 2))
        found.append(now)
    return found


def scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def labelled(history: Sequence[Figures], name: str, factor: float = 1.0, prefix: str = "") -> Lines:
    labels = dict.fromkeys(label for each in history for label in getattr(each, name))
    return {
        f"{prefix}{label}": [scaled(getattr(each, name).get(label), factor) for each in history] for label in labels
    }


def chart(title: str, times: list[datetime], lines: Lines, restarts: list[datetime]) -> None:
    told = {name: values for name, values in lines.items() if any(value is not None for value in values)}
    if not told:
        st.markdown(f"**{title}**")
        st.caption("no requests yet" if title.endswith("ms") else NOT_TOLD)
        return
    figure = go.Figure(layout=layout(title, times))
    for (name, values), colour in zip(told.items(), COLOURS * (1 + len(told) // len(COLOURS)), strict=False):
        figure.add_scatter(x=times, y=values, name=name, mode="lines", line={"color": colour, "width": 1.8})
    for moment in restarts:
        figure.add_vline(x=moment, line={"color": "#a5443a", "dash": "dot", "width": 1})
    st.plotly_chart(figure, key=title, config={"displayModeBar": False})


def layout(title: str, times: list[datetime]) -> dict[str, Any]:
    heights = {"range": [0, 100]} if "%" in title else {"rangemode": "tozero"}
    return {
        "title": {"text": title, "font": {"size": 14}},
        "height": 240,
        "margin": {"l": 40, "r": 10, "t": 40, "b": 30},
        "xaxis": {"range": [times[0], times[-1]]},
        "yaxis": heights,
        "showlegend": True,
        "legend": {"orientation": "h", "y": 1.18, "x": 1, "xanchor": "right"},
        "hovermode": "x unified",
        "uirevision": title,  # a zoom survives the next look
    }


if __name__ == "__main__":
    st.set_page_config(page_title="bitnet monitor", page_icon="⚪", layout="wide")
    st.markdown("## bitnet")
    page()
