"""Results as Markdown: llama-bench's table, and below it what a single rate does not tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bitnet.bench.results import Result

Row = Sequence[str]
MAIN = ("model", "size", "params", "backend", "threads", "test", "t/s", "GB/s (of read bandwidth)", "logits")
LATENCY = ("model", "engine", "threads", "test", "first token ms", "p50 ms", "p95 ms", "p99 ms")
MEMORY = ("model", "engine", "load s", "weights MiB", "KV cache MiB", "peak RSS MiB", "beside both MiB")
RATIOS = ("model", "threads", "test", "peer", "bitnet t/s", "peer t/s", "times faster", "least to most")
WORDS = ("model", "backend", "engine", "logits", "peer", "latency in ms", "part", "how")  # columns that are no numbers
LEAST = {"model": 20, "backend": 12, "test": 14, "t/s": 16, "GB/s (of read bandwidth)": 24, "logits": 9}


def markdown(results: Iterable[Result]) -> Iterator[str]:
    """The first table as its lines come, the others in the end."""
    known: list[Result] = []
    for result in results:
        cells = main_row(result)
        if not known:
            widths = [max(len(name), len(cell), LEAST.get(name, 0)) for name, cell in zip(MAIN, cells, strict=True)]
            yield from head(MAIN, widths)
        yield line(MAIN, cells, widths)
        known.append(result)
    if not known:
        return
    yield from table("Latency", LATENCY, map(latency_row, known))
    yield from table("Memory", MEMORY, dict.fromkeys(map(memory_row, known)))
    ours = {(r.model, r.n_threads, r.test): r for r in known if r.engine == "bitnet"}
    yield from table(
        "Beside peers",
        RATIOS,
        [ratio_row(ours[r.model, r.n_threads, r.test], r) for r in known if r.ratio is not None],
    )
    deeper = [depth_line(r) for r in known if r.depth_cost is not None]
    if deeper:
        yield ""
        yield from deeper
    kept = ", ".join(dict.fromkeys(r.weights for r in known if r.weights))
    at = kept and f", weights at {kept}"
    yield f"\nbuild: bitnet {known[0].build_commit}, {known[0].isa}{at} on {known[0].cpu_info}"
    for version in dict.fromkeys(f"{r.engine} {r.engine_version}" for r in known if r.engine != "bitnet"):
        yield f"peer: {version}"
    for note in dict.fromkeys(note for r in known for note in r.notes):
        yield f"note: {note}"


def table(title: str, names: Row, rows: Iterable[Row]) -> Iterator[str]:
    rows = list(rows)
    if not rows:
        return
    widths = [max(len(name), *map(len, column)) for name, column in zip(names, zip(*rows), strict=True)]
    yield f"\n{title}\n"
    yield from head(names, widths)
    for row in rows:
        yield line(names, row, widths)


def main_row(result: Result) -> Row:
    return (
        result.model_type,
        scaled(result.model_size, (2**30, "GiB"), (2**20, "MiB")),
        scaled(result.model_n_params, (10**9, "B"), (10**6, "M")),
        backend(result),
        str(result.n_threads),
        result.test.name,
        f"{result.avg_ts:.2f} ± {result.stddev_ts:.2f}",
        bandwidth(result),
        f"#{result.logits_hash}" if result.logits_hash else "",
    )


def latency_row(result: Result) -> Row:
    percentiles = (result.p50_ms, result.p95_ms, result.p99_ms)
    return (
        result.model,
        result.label,
        str(result.n_threads),
        result.test.name,
        f"{result.first_token_ms:.2f}",
        *("" if each is None else f"{each:.2f}" for each in percentiles),
    )


def memory_row(result: Result) -> Row:
    weights, kv, peak = result.weights_bytes, result.kv_cache_bytes, result.peak_rss_bytes
    beside = None if weights is None or kv is None or peak is None else peak - weights - kv
    return (
        result.model,
        result.label,
        "" if result.load_s is None else f"{result.load_s:.2f}",
        *("" if each is None else f"{each / 2**20:.0f}" for each in (weights, kv, peak, beside)),
    )


def ratio_row(ours: Result, theirs: Result) -> Row:
    return (
        theirs.model,
        str(theirs.n_threads),
        theirs.test.name,
        theirs.label,
        f"{ours.avg_ts:.2f}",
        f"{theirs.avg_ts:.2f}",
        f"{theirs.ratio:.2f}",
        f"{theirs.ratio_least:.2f} to {theirs.ratio_most:.2f}",
    )


def depth_line(result: Result) -> str:
    return (
        f"{result.model}, {result.label}, {result.n_threads} threads: {result.test.name} takes "
        f"{result.depth_cost:.2f} times what its bytes explain, beside the smallest depth."
    )


def backend(result: Result) -> str:
    return result.backends if result.engine == "bitnet" else result.engine


def scaled(number: int, large: tuple[int, str], small: tuple[int, str]) -> str:
    unit, name = large if number >= large[0] else small
    return f"{number / unit:.2f} {name}"


def bandwidth(result: Result) -> str:
    if result.gb_per_s is None:
        return ""
    if result.read_gb_per_s is None or result.bandwidth_share is None:
        return f"{result.gb_per_s:.1f}"
    return f"{result.gb_per_s:.1f} ({100 * result.bandwidth_share:.0f} % of {result.read_gb_per_s:.1f})"


def head(names: Row, widths: list[int]) -> Iterator[str]:
    yield line(names, names, widths)
    dashes = ["-" * width if name in WORDS else "-" * (width - 1) + ":" for name, width in zip(names, widths)]
    yield line(names, dashes, widths)


def line(names: Row, cells: Row, widths: list[int]) -> str:
    padded = (
        cell.ljust(width) if name in WORDS else cell.rjust(width)
        for name, cell, width in zip(names, cells, widths, strict=True)
    )
    return f"| {' | '.join(padded)} |"
