"""A server's /metrics, made by prometheus_client itself, with numbers that a test puts in."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class ServedMetrics:
    """A server that has just started."""

    def __init__(self, start: float | None = None, model: str = "tiny") -> None:
        self.registry = CollectorRegistry()
        self.model = model
        self.histograms = {
            name: Histogram(f"bitnet_{name}_seconds", name, ["model"], registry=self.registry, buckets=BUCKETS)
            for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time")
        }
        self.counters = {
            name: Counter(f"bitnet_{name}", name, ["model"], registry=self.registry)
            for name in ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits")
        }
        self.gauges = {
            name: Gauge(f"bitnet_{name}", name, ["model"], registry=self.registry)
            for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio")
        }
        self.requests = Counter("bitnet_requests", "by outcome", ["model", "outcome"], registry=self.registry)
        self.machine: dict[str, Gauge] = {}
        self.tell("start_time_seconds", time.time() if start is None else start)
        self.tell("info", 1, version="0.1.0", isa="avx2")

    def count(self, name: str, amount: float, model: str = "") -> None:
        self.counters[name].labels(model or self.model).inc(amount)

    def observe(self, name: str, *seconds: float, model: str = "") -> None:
        for each in seconds:
            self.histograms[name].labels(model or self.model).observe(each)

    def set(self, name: str, value: float, model: str = "") -> None:
        self.gauges[name].labels(model or self.model).set(value)

    def finish(self, outcome: str, model: str = "") -> None:
        self.requests.labels(model or self.model, outcome).inc()

    def tell(self, name: str, value: float, **labels: str) -> None:
        """A gauge of the machine."""
        if name not in self.machine:
            self.machine[name] = Gauge(f"bitnet_{name}", name, list(labels), registry=self.registry)
        gauge = self.machine[name].labels(**labels) if labels else self.machine[name]
        gauge.set(value)

    def text(self) -> str:
        return generate_latest(self.registry).decode()
