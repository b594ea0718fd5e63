"""What /metrics tells (Prometheus): latencies, queues, cache and tokens, by model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bitnet.engine import Sequence
from bitnet.monitor.collector import MachineCollector
from bitnet.server.registry import Served

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
BETWEEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
LOADED = Callable[[], Mapping[str, Served]]

# The names that dashboards made for other servers ask for.
ALIASES = {
    "bitnet_time_to_first_token_seconds": "vllm:time_to_first_token_seconds",
    "bitnet_inter_token_latency_seconds": "vllm:inter_token_latency_seconds",
    "bitnet_e2e_request_latency_seconds": "vllm:e2e_request_latency_seconds",
    "bitnet_request_queue_time_seconds": "vllm:request_queue_time_seconds",
    "bitnet_requests_running": "vllm:num_requests_running",
    "bitnet_requests_waiting": "vllm:num_requests_waiting",
    "bitnet_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
    "bitnet_prefix_cache_queries": "vllm:prefix_cache_queries",
    "bitnet_prefix_cache_hits": "vllm:prefix_cache_hits",
    "bitnet_prompt_tokens": "vllm:prompt_tokens",
    "bitnet_generation_tokens": "vllm:generation_tokens",
}
LLAMA_CPP = {
    "bitnet_prompt_tokens": "llamacpp:prompt_tokens",
    "bitnet_generation_tokens": "llamacpp:tokens_predicted",
    "bitnet_requests_running": "llamacpp:requests_processing",
    "bitnet_requests_waiting": "llamacpp:requests_deferred",
}


class Metrics:
    """loaded: the models that are in memory now."""

    def __init__(self, loaded: LOADED, aliases: bool = False) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, help: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(f"bitnet_{name}_seconds", help, ["model"], buckets=buckets, registry=self.registry)

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"bitnet_{name}", help, ["model", *labels], registry=self.registry)

        self.first_token = histogram("time_to_first_token", "From request to first token.")
        self.between = histogram("inter_token_latency", "From one token to the next.", BETWEEN)
        self.end_to_end = histogram("e2e_request_latency", "From request to last token.")
        self.queue_time = histogram("request_queue_time", "From request to the engine.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.generated = counter("generation_tokens", "Tokens generated.")
        self.requests = counter("requests", "Texts asked for, by how they ended.", "outcome")
        self.registry.register(Engines(loaded))
        self.registry.register(MachineCollector())
        self._aliases, self._loaded = aliases, loaded
        self._models: dict[str, ModelMetrics] = {}

    def of(self, model: str) -> ModelMetrics:
        if model not in self._models:
            self._models[model] = ModelMetrics(self, model)
        return self._models[model]

    def text(self) -> bytes:
        """In Prometheus' format."""
        for name in list(self._loaded()):
            self.of(name)  # counters that begin with 0 have a rate from their first count on
        return generate_latest(Aliased(self.registry) if self._aliases else self.registry)


class ModelMetrics:
    """The same, of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.queue_time = metrics.queue_time.labels(model)
        self.first_token, self.between = metrics.first_token.labels(model), metrics.between.labels(model)
        self._end_to_end = metrics.end_to_end.labels(model)
        self._prompt_tokens, self._generated = metrics.prompt_tokens.labels(model), metrics.generated.labels(model)
        self._requests, self._model = metrics.requests, model

    def rejected(self, count: int) -> None:
        self._requests.labels(self._model, "rejected").inc(count)

    def finished(self, sequence: Sequence, seconds: float) -> None:
        self._requests.labels(self._model, sequence.finish_reason or "abort").inc()
        self._prompt_tokens.inc(len(sequence.prompt))
        self._generated.inc(len(sequence.output))
        self._end_to_end.observe(seconds)

    def latency(self, arrived: float) -> Latency:
        return Latency(self, arrived)


class Latency:
    """Of one text's tokens. arrived: time.perf_counter() of its request."""

    def __init__(self, metrics: ModelMetrics, arrived: float) -> None:
        self._metrics, self._before, self._observe = metrics, arrived, metrics.first_token.observe

    def token(self) -> None:
        now = time.perf_counter()
        self._observe(now - self._before)
        self._before, self._observe = now, self._metrics.between.observe


class Engines(Collector):
    """Read off the engines when someone asks."""

    def __init__(self, loaded: LOADED) -> None:
        self._loaded = loaded

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("bitnet_requests_running", "Sequences in the engine.", labels=["model"])
        waiting = GaugeMetricFamily("bitnet_requests_waiting", "Sequences that wait for a turn.", labels=["model"])
        used = GaugeMetricFamily("bitnet_kv_cache_usage_ratio", "Share of the cache in use.", labels=["model"])
        queries = CounterMetricFamily("bitnet_prefix_cache_queries", "Prompt tokens looked up.", labels=["model"])
        hits = CounterMetricFamily("bitnet_prefix_cache_hits", "Prompt tokens found.", labels=["model"])
        for name, served in list(self._loaded().items()):
            pool = served.model.llm.scheduler.pool
            running.add_metric([name], served.service.running)
            waiting.add_metric([name], served.service.waiting + served.admission.waiting)
            used.add_metric([name], 1 - pool.free / pool.count)
            queries.add_metric([name], pool.queries)
            hits.add_metric([name], pool.hits)
        yield from (running, waiting, used, queries, hits)


class Aliased:
    """A registry, and once more under the names of others, whose label is `model_name`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            yield metric
            for names in (ALIASES, LLAMA_CPP):
                if metric.name in names:
                    yield renamed(metric, names[metric.name])


def renamed(metric: Metric, name: str) -> Metric:
    copy = Metric(name, metric.documentation, metric.type)
    for sample in metric.samples:
        labels: dict[str, Any] = dict(sample.labels)
        labels["model_name"] = labels.pop("model")
        copy.add_sample(name + sample.name.removeprefix(metric.name), labels, sample.value)
    return copy
