"""Snapshots of some minutes: rates from the differences of counters, percentiles from those of histograms.

The server's counters start at 0 when it starts: across a restart there are no differences.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

from bitnet.monitor.reader import Snapshot

MINUTES = 15
WINDOW = 60.0  # seconds over which percentiles and shares are taken
RECENT = 5.0  # and rates


@dataclass(frozen=True, slots=True)
class Figures:
    """What there is to say of one moment: seconds, tokens per second, shares between 0 and 1; None where nothing tells.

    Latencies are {"p50": ..., "p95": ...} of the last minute, or empty.
    """

    time: float
    version: str | None = None
    isa: str | None = None
    uptime: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None
    generation_rate: float | None = None
    prompt_rate: float | None = None
    prefix_hit_ratio: float | None = None
    time_to_first_token: dict[str, float] = field(default_factory=dict)
    inter_token_latency: dict[str, float] = field(default_factory=dict)
    e2e_request_latency: dict[str, float] = field(default_factory=dict)
    request_queue_time: dict[str, float] = field(default_factory=dict)
    requests: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    cpu_limit: float | None = None
    memory_used: float | None = None
    memory_total: float | None = None
    resident: float | None = None
    temperature: dict[str, float] = field(default_factory=dict)
    power: dict[str, float] = field(default_factory=dict)
    frequency: dict[str, float] = field(default_factory=dict)
    battery: dict[str, float] = field(default_factory=dict)
    throttled: dict[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


LATENCIES = ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time")


class History:
    """model: only this one's figures; None: all together."""

    def __init__(self, model: str | None = None, seconds: float = MINUTES * 60) -> None:
        self.model = model
        self.restarts: list[float] = []
        self._seconds = seconds
        self._snapshots: deque[Snapshot] = deque()
        self._figures: deque[Figures] = deque()

    def add(self, snapshot: Snapshot) -> Figures:
        if self._snapshots and snapshot.time <= self._snapshots[-1].time:
            self._forget_all()  # the clock was set back: a Raspberry Pi's, say, which has none of its own
        if self._snapshots and restarted(self._snapshots[-1], snapshot):
            self.restarts = [each for each in self.restarts if snapshot.time - each < self._seconds] + [snapshot.time]
            self._snapshots.clear()
        self._snapshots.append(snapshot)
        # The percentiles need no more than the last minute; what was once computed is kept longer.
        forget(self._snapshots, snapshot.time - 2 * WINDOW)
        self._figures.append(self._compute(snapshot))
        forget(self._figures, snapshot.time - self._seconds)
        return self._figures[-1]

    def _forget_all(self) -> None:
        self.restarts = []
        self._snapshots.clear()
        self._figures.clear()

    @property
    def figures(self) -> list[Figures]:
        """Oldest first."""
        return list(self._figures)

    def before(self, seconds: float) -> Snapshot | None:
        """The snapshot to take differences from: the youngest that is `seconds` old, or else the oldest."""
        last = self._snapshots[-1]
        older = [each for each in self._snapshots if last.time - each.time >= seconds * 0.99]
        found = older[-1] if older else self._snapshots[0]
        return None if found is last else found

    def rate(self, name: str, seconds: float = RECENT) -> float | None:
        """By how much a counter grew per second."""
        before, grown = self.before(seconds), self.growth(name, seconds)
        return None if before is None or grown is None else grown / (self._snapshots[-1].time - before.time)

    def growth(self, name: str, seconds: float) -> float | None:
        before, now = self.before(seconds), self._snapshots[-1].total(name, self.model)
        return None if before is None or now is None else now - (before.total(name, self.model) or 0.0)

    def percentiles(self, name: str, seconds: float = WINDOW) -> dict[str, float]:
        """ "p50" and "p95" of what a histogram saw in the last `seconds`; empty where it saw nothing."""
        before = self.before(seconds)
        if before is None:
            return {}
        then, now = (buckets(each, name, self.model) for each in (before, self._snapshots[-1]))
        seen = {bound: count - then.get(bound, 0.0) for bound, count in now.items()}
        return {f"p{100 * q:.0f}": value for q in (0.5, 0.95) if (value := quantile(q, seen)) is not None}

    def _compute(self, now: Snapshot) -> Figures:
        model = self.model
        start = now.total("bitnet_start_time_seconds")
        queries = self.growth("bitnet_prefix_cache_queries_total", WINDOW)
        hits = self.growth("bitnet_prefix_cache_hits_total", WINDOW)
        outcomes: dict[str, float] = {}
        for labels, value in now.each("bitnet_requests_total", model):
            outcomes[labels.get("outcome", "")] = outcomes.get(labels.get("outcome", ""), 0.0) + value
        return Figures(
            time=now.time,
            version=now.label("bitnet_info", "version"),
            isa=now.label("bitnet_info", "isa"),
            uptime=None if start is None else max(0.0, now.time - start),
            running=now.total("bitnet_requests_running", model),
            waiting=now.total("bitnet_requests_waiting", model),
            # Each model has a cache of its own: what matters is the fullest.
            kv_cache_usage=max((value for _, value in now.each("bitnet_kv_cache_usage_ratio", model)), default=None),
            generation_rate=self.rate("bitnet_generation_tokens_total"),
            prompt_rate=self.rate("bitnet_prompt_tokens_total"),
            prefix_hit_ratio=(hits or 0.0) / queries if queries else None,
            **{name: self.percentiles(f"bitnet_{name}_seconds") for name in LATENCIES},
            requests=outcomes,
            cpu=now.by("bitnet_cpu_usage_ratio", "core"),
            cpu_limit=now.total("bitnet_cpu_limit_cores"),
            memory_used=now.total("bitnet_memory_used_bytes"),
            memory_total=now.total("bitnet_memory_total_bytes"),
            resident=now.total("bitnet_process_resident_bytes"),
            temperature=now.by("bitnet_temperature_celsius", "sensor"),
            power=now.by("bitnet_power_watts", "domain"),
            frequency=now.by("bitnet_cpu_frequency_hertz", "core"),
            battery=now.by("bitnet_battery_charge_ratio", "battery"),
            throttled=now.by("bitnet_throttled", "reason"),
        )


def forget(items: deque[Any], time: float) -> None:
    while items[0].time < time:
        items.popleft()


def restarted(before: Snapshot, now: Snapshot) -> bool:
    """Whether another server answers than before: it says so, or its counters fell."""
    starts = before.total("bitnet_start_time_seconds"), now.total("bitnet_start_time_seconds")
    if starts[0] is not None and starts[1] is not None:
        return starts[0] != starts[1]
    return any(
        now.samples[name].get(labels, value) < value
        for name, series in before.samples.items()
        if name.endswith(("_total", "_count", "_bucket")) and name in now.samples
        for labels, value in series.items()
    )


def buckets(snapshot: Snapshot, name: str, model: str | None) -> dict[float, float]:
    """Upper bound -> observations up to it, over all models."""
    found: dict[float, float] = {}
    for labels, count in snapshot.each(f"{name}_bucket", model):
        bound = float(labels.get("le", "nan"))
        found[bound] = found.get(bound, 0.0) + count
    return found


def quantile(q: float, cumulative: dict[float, float]) -> float | None:
    """As Prometheus' histogram_quantile: linear within a bucket, and the last bound for what lies above it."""
    bounds = sorted(bound for bound in cumulative if not math.isnan(bound))
    if not bounds or bounds[-1] != math.inf or cumulative[math.inf] <= 0:
        return None
    rank, low, below = q * cumulative[math.inf], 0.0, 0.0
    for bound in bounds:
        if cumulative[bound] >= rank and bound != math.inf:
            inside = cumulative[bound] - below
            return low + (bound - low) * ((rank - below) / inside if inside > 0 else 1.0)
        if bound != math.inf:
            low, below = bound, cumulative[bound]
    return low
