"""Results that were never measured: every number is the test's own."""

from __future__ import annotations

from typing import Any

from bitnet.bench.results import Facts, Result, measured
from bitnet.bench.speed import Sample, Test

FACTS: dict[str, Any] = {
    "engine": "bitnet",
    "engine_version": "0.1.0",
    "backends": "CPU",
    "isa": "scalar",
    "weights": "2bit",
    "model_filename": "synthetic-tiny",
    "model_type": "bitnet 1M packed",
    "model_size": 1_000_000,
    "model_n_params": 1_200_000,
    "type_kv": "f16",
    "head": "full",
    "load_s": 0.5,
    "weight_bytes": 900_000,
    "resident_bytes": 1_000_000,
    "position_bytes": 1000,
    "kv_cache_bytes": 16_000,
    "multiply_adds": 3_000_000,
}
SHARED: dict[str, Any] = {
    "build_commit": "0.1.0",
    "build_number": 0,
    "cpu_info": "a processor",
    "gpu_info": "",
    "n_batch": 512,
    "n_ubatch": 512,
    "test_time": "2026-01-01T00:00:00Z",
    "model": "tiny",
    "depth_cost": None,
    "ratio": None,
    "ratio_least": None,
    "ratio_most": None,
    "peak_rss_bytes": 90_000_000,
    "others_share": 0.0,
    "steal_share": 0.0,
    "options": {},
    "notes": [],
}


def result(test: Test, ns: list[int], *, threads: int = 2, read: float | None = 50.0, **changed: Any) -> Result:
    """Of repetitions that took so many nanoseconds, each in equal steps; `changed`: fields of Facts or Result."""
    facts = Facts(**{name: changed.pop(name, value) for name, value in FACTS.items()})
    steps = test.n_gen + bool(test.n_prompt)
    samples = [Sample(each, each // steps, (each // steps,) * test.n_gen) for each in ns]
    return Result(**{**measured(facts, test, threads, samples, read), **SHARED, **changed})
