"""What a load's records come to, by the names of vLLM's `bench serve`, so that what reads those reads these."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from bitnet.bench.serving.client import Record

if TYPE_CHECKING:
    from bitnet.bench.serving.load import Load

METRICS = {"ttft": "time to first token", "tpot": "time per output token", "itl": "inter-token", "e2el": "end to end"}
PERCENTILES = (50, 90, 95, 99)
LATE = 0.05  # seconds by which the load itself may come late before that is said


@dataclass(frozen=True, slots=True)
class Summary:
    """fields: of the whole load. details: of each request. notes: what a reader should know."""

    fields: dict[str, Any]
    details: dict[str, list[Any]]
    notes: list[str]

    def to_json(self, detailed: bool = False) -> dict[str, Any]:
        return {**self.fields, **(self.details if detailed else {}), "notes": self.notes}


def summary(load: Load, model: str, records: Sequence[Record], counts: bool) -> Summary:
    whole = [record for record in records if not record.error]
    failures = Counter(record.error for record in records if record.error)
    began, ended = min(record.started for record in records), max(record.ended for record in records)
    duration = max(ended - began, 1e-9)
    taken, given = sum(r.prompt_tokens for r in whole), sum(r.output_tokens for r in whole)
    fields: dict[str, Any] = {
        "date": datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "openai-chat" if load.endpoint == "chat" else "openai",
        "base_url": load.base_url,
        "model_id": model,
        "num_prompts": load.num_prompts,
        "request_rate": "inf" if math.isinf(load.request_rate) else load.request_rate,
        "burstiness": "inf" if math.isinf(load.burstiness) else load.burstiness,
        "max_concurrency": load.max_concurrency or None,
        "prefix_len": load.prefix_len,
        "seed": load.seed,
        "duration": duration,
        "completed": len(whole),
        "failed": len(records) - len(whole),
        "failures": dict(failures.most_common(20)),
        "total_input_tokens": taken,
        "total_output_tokens": given,
        "request_throughput": len(whole) / duration,
        "request_goodput": sum(good(r, load.slo) for r in whole) / duration if load.slo else None,
        "slo": dict(load.slo) or None,
        "output_throughput": given / duration,
        "total_token_throughput": (taken + given) / duration,
        "max_concurrent_requests": most_at_once(records),
    }
    for name in METRICS:
        fields |= spread(name, [1000 * value for record in whole for value in values(record, name)])
    details: dict[str, list[Any]] = {
        "input_lens": [r.prompt_tokens for r in records],
        "output_lens": [r.output_tokens for r in records],
        "ttfts": [r.ttft for r in records],
        "itls": [r.itls for r in records],
        "e2els": [r.e2el for r in records],
        "start_times": [r.started - began for r in records],
        "errors": [r.error for r in records],
    }
    return Summary(fields, details, list(notes(load, records, counts)))


def values(record: Record, metric: str) -> list[float]:
    """In seconds."""
    found: Any = record.itls if metric == "itl" else [getattr(record, metric)]
    return [value for value in found if value is not None]


def good(record: Record, slo: Mapping[str, float]) -> bool:
    return all(1000 * value <= bound for name, bound in slo.items() for value in values(record, name))


def spread(name: str, milliseconds: list[float]) -> dict[str, float | None]:
    known = np.array(milliseconds)
    found: dict[str, float | None] = {f"{kind}_{name}_ms": None for kind in ("mean", "median", "std")}
    found |= {f"p{p}_{name}_ms": None for p in PERCENTILES}
    if known.size:
        found |= {f"p{p}_{name}_ms": float(value) for p, value in zip(PERCENTILES, np.percentile(known, PERCENTILES))}
        found |= {f"mean_{name}_ms": float(known.mean()), f"std_{name}_ms": float(known.std())}
        found[f"median_{name}_ms"] = found[f"p50_{name}_ms"]
    return found


def most_at_once(records: Iterable[Record]) -> int:
    changes = sorted(change for r in records for change in ((r.sent, 1), (r.ended, -1)))
    return int(np.cumsum([step for _, step in changes]).max())


def notes(load: Load, records: Sequence[Record], counts: bool) -> Iterable[str]:
    if not counts:
        yield "the server does not count tokens: prompts are as long as guessed, and each piece of text counts as one"
    late = max(record.sent - record.due for record in records)
    if late > LATE and not load.max_concurrency:
        yield f"the load came up to {1000 * late:.0f} ms late: this machine could not send it faster"
    for error, count in Counter(record.error for record in records if record.error).most_common(3):
        yield f"{count} failed: {error}"
