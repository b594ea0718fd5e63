"""What one test gave: llama-bench's record, and beside it what it takes to judge and repeat it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from bitnet.bench.speed import Sample, Test
from bitnet.errors import ParameterError


@dataclass(frozen=True, slots=True)
class Facts:
    """What is true of an engine with a model, whatever the test.

    weight_bytes: weights that generating a token reads; resident_bytes: weights in memory. position_bytes: keys and
    values of one position. load_s: from opening the file to being ready; None where nothing was loaded. weights: how
    ternary ones are kept, such as "1.6bit"; "" where that is not known.
    """

    engine: str
    engine_version: str
    backends: str
    isa: str
    weights: str
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    type_kv: str
    head: str
    load_s: float | None
    weight_bytes: int
    resident_bytes: int | None
    position_bytes: int
    kv_cache_bytes: int | None
    multiply_adds: int


@dataclass(frozen=True, slots=True)
class Result:
    """One line. The fields down to samples_ts are llama-bench's; those after it are ours.

    engine: "bitnet" or a peer. model: what was asked for, the same for all engines. first_token_ms: from the start of
    the clock to the logits of the first new token, the median repetition: time to first token where there is a prompt.
    p50_ms, p95_ms, p99_ms: of all generated tokens of all repetitions.
    bytes_per_token: weights and cache that generating a token reads, kv_bytes_per_token the cache alone. gb_per_s:
    bytes_per_token times the rate. read_gb_per_s: what so many threads read at best in this run, before or after the
    tests, and bandwidth_share the part of it that was used. depth_cost: how many times longer a token takes than at the
    smallest depth of this run, over how many times more bytes it reads; 1 or less: context costs what its bytes do.
    multiply_adds_per_token: with the weights of the layers.
    ratio: of a peer, how many times faster bitnet was, the median of the pairs of one repetition, with the extremes.
    weights_bytes, kv_cache_bytes: in memory, beside the peak of all that the process had resident from before loading.
    others_share, steal_share: of the processors' time during the run. logits_hash: of all logits of the last token.
    head: "screen" where tokens were found by one, else "full". weights: how ternary ones are kept, such as "1.6bit".
    """

    build_commit: str
    build_number: int
    cpu_info: str
    gpu_info: str
    backends: str
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    type_k: str
    type_v: str
    n_prompt: int
    n_gen: int
    n_depth: int
    test_time: str
    avg_ns: int
    stddev_ns: int
    avg_ts: float
    stddev_ts: float
    samples_ns: list[int]
    samples_ts: list[float]
    engine: str
    engine_version: str
    model: str
    isa: str
    first_token_ms: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    bytes_per_token: int | None
    kv_bytes_per_token: int | None
    gb_per_s: float | None
    read_gb_per_s: float | None
    bandwidth_share: float | None
    depth_cost: float | None
    multiply_adds_per_token: int
    ratio: float | None
    ratio_least: float | None
    ratio_most: float | None
    load_s: float | None
    weights_bytes: int | None
    kv_cache_bytes: int | None
    peak_rss_bytes: int | None
    others_share: float
    steal_share: float
    logits_hash: str
    head: str
    weights: str
    options: dict[str, Any]
    notes: list[str]

    @property
    def test(self) -> Test:
        return Test(self.n_prompt, self.n_gen, self.n_depth)

    @property
    def label(self) -> str:
        """The engine, with the type of a peer's weights: one peer may come in several."""
        return self.engine if self.engine == "bitnet" else f"{self.engine} {self.model_type.split()[-1]}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> Result:
        """The opposite of to_json; ParameterError for anything else."""
        known = {field.name for field in fields(cls)}
        if not isinstance(record, dict) or record.keys() != known:
            missing = sorted(known - set(record if isinstance(record, dict) else ()))
            raise ParameterError(
                f"A record lacks {', '.join(missing[:4])}." if missing else "A record has fields of another version.",
                "Take what this version of bitnet wrote with `bitnet bench -o json`.",
            )
        return cls(**record)


def measured(facts: Facts, test: Test, threads: int, samples: Sequence[Sample], read: float | None) -> dict[str, Any]:
    """The fields that come of an engine's samples of one test; `read` is the bandwidth."""
    ns = [sample.ns for sample in samples]
    rates = [test.tokens * 1e9 / each for each in ns]
    steps = [each / 1e6 for sample in samples for each in sample.token_ns]
    percentiles = [float(each) for each in np.percentile(steps, (50, 95, 99))] if steps else [None] * 3
    decoding = test.n_gen > 0 and test.n_prompt == 0
    kv = round(test.mean_context * facts.position_bytes) if decoding else None
    nbytes = None if kv is None else facts.weight_bytes + kv
    moved = None if nbytes is None else nbytes * statistics.mean(rates) / 1e9
    hashes = {sample.logits_hash for sample in samples}
    return {
        "backends": facts.backends,
        "model_filename": facts.model_filename,
        "model_type": facts.model_type,
        "model_size": facts.model_size,
        "model_n_params": facts.model_n_params,
        "n_threads": threads,
        "type_k": facts.type_kv,
        "type_v": facts.type_kv,
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "avg_ns": round(statistics.mean(ns)),
        "stddev_ns": round(deviation(ns)),
        "avg_ts": statistics.mean(rates),
        "stddev_ts": deviation(rates),
        "samples_ns": ns,
        "samples_ts": rates,
        "engine": facts.engine,
        "engine_version": facts.engine_version,
        "isa": facts.isa,
        "first_token_ms": statistics.median(sample.first_ns for sample in samples) / 1e6,
        **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True)),
        "bytes_per_token": nbytes,
        "kv_bytes_per_token": kv,
        "gb_per_s": moved,
        "read_gb_per_s": read if decoding else None,
        "bandwidth_share": moved / read if moved and read else None,
        "multiply_adds_per_token": facts.multiply_adds,
        "load_s": facts.load_s,
        "weights_bytes": facts.resident_bytes,
        "kv_cache_bytes": facts.kv_cache_bytes,
        "logits_hash": hashes.pop() if len(hashes) == 1 else "varies",
        "head": facts.head,
        "weights": facts.weights,
    }


def deviation(samples: Sequence[float]) -> float:
    """The standard deviation of a sample (n - 1), 0 for a single one."""
    return statistics.stdev(samples) if len(samples) > 1 else 0.0


def compared(results: Iterable[Result]) -> list[Result]:
    """The results of one model, with what comes of setting them beside each other: ratio and depth_cost."""
    known = list(results)
    ours = {(r.n_threads, r.test): r for r in known if r.engine == "bitnet"}
    return [beside_depth(beside_ours(each, ours.get((each.n_threads, each.test))), known) for each in known]


def beside_ours(result: Result, ours: Result | None) -> Result:
    if ours is None or result.engine == "bitnet":
        return result
    # A peer that ended early has fewer samples; the first ones are of the same repetitions.
    pairs = [a / b for a, b in zip(ours.samples_ts, result.samples_ts, strict=False)]
    return replace(result, ratio=statistics.median(pairs), ratio_least=min(pairs), ratio_most=max(pairs))


def beside_depth(result: Result, known: Iterable[Result]) -> Result:
    same = [
        each
        for each in known
        if (each.label, each.n_threads, each.n_prompt, each.n_gen)
        == (result.label, result.n_threads, result.n_prompt, result.n_gen)
    ]
    first = min(same, key=lambda each: each.n_depth)
    if first.n_depth == result.n_depth or not result.bytes_per_token or not first.bytes_per_token:
        return result
    longer = statistics.median(result.samples_ns) / statistics.median(first.samples_ns)
    return replace(result, depth_cost=longer / (result.bytes_per_token / first.bytes_per_token))
