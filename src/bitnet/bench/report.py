"""Results as Markdown, JSON, JSON lines or CSV, each written as soon as its line is known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator

from bitnet.bench.suite import Result

COLUMNS = ("model", "size", "params", "backend", "threads", "test", "t/s", "GB/s (of read bandwidth)", "logits")
NUMBERS = ("size", "params", "threads", "test", "t/s", "GB/s (of read bandwidth)")


def markdown(results: Iterable[Result]) -> Iterator[str]:
    """llama-bench's columns, and beside them the bandwidth and the hash of the last logits."""
    last = None
    for result in results:
        cells = row(result)
        if last is None:
            widths = [max(len(name), len(cell), LEAST.get(name, 0)) for name, cell in zip(COLUMNS, cells, strict=True)]
            yield line(COLUMNS, widths)
            yield line([dashes(name, width) for name, width in zip(COLUMNS, widths, strict=True)], widths)
        yield line(cells, widths)
        last = result
    if last is not None:
        kept = last.weights and f", weights at {last.weights}"
        yield f"\nbuild: bitnet {last.build_commit}, {last.isa}{kept} on {last.cpu_info}"


LEAST = {"test": 14, "t/s": 16, "GB/s (of read bandwidth)": 24}


def row(result: Result) -> list[str]:
    return [
        result.model_type,
        scaled(result.model_size, (2**30, "GiB"), (2**20, "MiB")),
        scaled(result.model_n_params, (10**9, "B"), (10**6, "M")),
        result.backends,
        str(result.n_threads),
        result.test.name,
        f"{result.avg_ts:.2f} ± {result.stddev_ts:.2f}",
        bandwidth(result),
        f"#{result.logits_hash}",
    ]


def scaled(number: int, large: tuple[int, str], small: tuple[int, str]) -> str:
    unit, name = large if number >= large[0] else small
    return f"{number / unit:.2f} {name}"


def bandwidth(result: Result) -> str:
    if result.gb_per_s is None:
        return ""
    if result.read_gb_per_s is None or result.bandwidth_share is None:
        return f"{result.gb_per_s:.1f}"
    return f"{result.gb_per_s:.1f} ({100 * result.bandwidth_share:.0f} % of {result.read_gb_per_s:.1f})"


def line(cells: Iterable[str], widths: list[int]) -> str:
    padded = (
        cell.rjust(width) if name in NUMBERS else cell.ljust(width)
        for name, cell, width in zip(COLUMNS, cells, widths, strict=True)
    )
    return f"| {' | '.join(padded)} |"


def dashes(name: str, width: int) -> str:
    return "-" * (width - 1) + ":" if name in NUMBERS else "-" * width


def as_json(results: Iterable[Result]) -> Iterator[str]:
    yield json.dumps([result.to_json() for result in results], indent=2)


def json_lines(results: Iterable[Result]) -> Iterator[str]:
    for result in results:
        yield json.dumps(result.to_json())


def comma_separated(results: Iterable[Result]) -> Iterator[str]:
    """Without the samples, as llama-bench does."""
    for i, result in enumerate(results):
        fields = {name: value for name, value in result.to_json().items() if not name.startswith("samples_")}
        if i == 0:
            yield record(fields)
        yield record(fields.values())


def record(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(["" if value is None else value for value in values])
    return text.getvalue()


FORMATS = {"md": markdown, "json": as_json, "jsonl": json_lines, "csv": comma_separated}
