"""Summaries as Markdown, JSON or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from bitnet.bench.serving.summary import METRICS, PERCENTILES, Summary
from bitnet.bench.tables import Row, table

RATES = ("requests/s asked", "at once", "done", "failed", "requests/s", "good/s", "output tok/s", "total tok/s")
TIMES = ("requests/s asked", "at once", "latency in ms", "mean", *(f"p{p}" for p in PERCENTILES))


def markdown(summaries: Iterable[Summary], detailed: bool) -> Iterator[str]:
    known = list(summaries)
    yield from table("Throughput", RATES, map(rates_row, known))
    yield from table("Latency", TIMES, [times_row(each, name) for each in known for name in METRICS])
    yield f"\nmodel: {known[0].fields['model_id']} at {known[0].fields['base_url']}"
    for note in dict.fromkeys(note for each in known for note in each.notes):
        yield f"note: {note}"


def label(summary: Summary) -> tuple[str, str]:
    fields = summary.fields
    bound = fields["max_concurrency"]
    return str(fields["request_rate"]), f"{fields['max_concurrent_requests']}" + (f" of {bound}" if bound else "")


def rates_row(summary: Summary) -> Row:
    fields = summary.fields
    rates = ("request_throughput", "request_goodput", "output_throughput", "total_token_throughput")
    return (*label(summary), str(fields["completed"]), str(fields["failed"]), *(number(fields[name]) for name in rates))


def times_row(summary: Summary, metric: str) -> Row:
    kinds = ("mean", *(f"p{p}" for p in PERCENTILES))
    return (*label(summary), METRICS[metric], *(number(summary.fields[f"{kind}_{metric}_ms"]) for kind in kinds))


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def as_json(summaries: Iterable[Summary], detailed: bool) -> Iterator[str]:
    yield json.dumps([each.to_json(detailed) for each in summaries], indent=2)


def json_lines(summaries: Iterable[Summary], detailed: bool) -> Iterator[str]:
    for each in summaries:
        yield json.dumps(each.to_json(detailed))


FORMATS = {"md": markdown, "json": as_json, "jsonl": json_lines}
