"""Rates, shares and percentiles from what a server counts, also when it starts anew."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from served_metrics import BUCKETS, ServedMetrics

from bitnet.monitor.history import History, quantile
from bitnet.monitor.reader import parse


def test_one_snapshot_has_gauges_and_no_rates() -> None:
    served = ServedMetrics(start=1000)
    served.set("requests_running", 3)
    served.count("generation_tokens", 500)
    served.observe("time_to_first_token", 0.2)
    found = History().add(parse(served.text(), now=1060))
    assert (found.running, found.uptime, found.version, found.isa) == (3, 60, "0.1.0", "avx2")
    assert found.generation_rate is None and found.prefix_hit_ratio is None and found.time_to_first_token == {}
    assert found.kv_cache_usage is None and found.cpu == found.temperature == found.power == {}


def test_rates_are_over_the_last_seconds_and_shares_over_the_last_minute() -> None:
    served, history = ServedMetrics(start=0), History()
    for second in range(100):
        served.count("generation_tokens", 10 if second < 90 else 40)
        served.count("prefix_cache_queries", 100)
        served.count("prefix_cache_hits", 0 if second < 70 else 100)
        found = history.add(parse(served.text(), now=float(second)))
    assert found.generation_rate == pytest.approx(40)
    assert found.prefix_hit_ratio == pytest.approx(30 / 60)
    assert len(history.figures) == 100


def test_percentiles_are_of_what_was_seen_since_and_not_of_all_time() -> None:
    served, history = ServedMetrics(start=0), History()
    served.observe("time_to_first_token", *[9.0] * 1000)  # long ago
    history.add(parse(served.text(), now=0.0))
    served.observe("time_to_first_token", *[0.03] * 100)
    found = history.add(parse(served.text(), now=1.0)).time_to_first_token
    assert 0.025 < found["p50"] < found["p95"] <= 0.05


def test_another_start_begins_anew() -> None:
    history = History()
    for start, tokens, now in ((0, 100_000, 10.0), (0, 100_100, 11.0), (11.5, 20, 12.0), (11.5, 50, 13.0)):
        served = ServedMetrics(start=start)
        served.count("generation_tokens", tokens)
        history.add(parse(served.text(), now=now))
    assert [each.generation_rate for each in history.figures] == [None, 100, None, 30]
    assert history.restarts == [12.0]


def test_counters_that_fall_are_a_restart_where_no_start_is_told() -> None:
    history = History()
    for value, now in ((7, 1.0), (9, 2.0), (1, 3.0), (4, 4.0)):
        history.add(parse(f"# TYPE bitnet_generation_tokens counter\nbitnet_generation_tokens_total {value}\n", now))
    assert history.restarts == [3.0]
    assert [each.generation_rate for each in history.figures] == [None, 2, None, 3]


def test_a_clock_that_is_set_back_begins_anew() -> None:
    served, history = ServedMetrics(start=0), History()
    for now in (100.0, 101.0, 50.0, 51.0):
        served.count("generation_tokens", 10)
        history.add(parse(served.text(), now))
    assert [(each.time, each.generation_rate) for each in history.figures] == [(50.0, None), (51.0, 10)]


def test_models_are_summed_or_looked_at_alone() -> None:
    served = ServedMetrics()
    for model, running, usage in (("a", 2, 0.1), ("b", 5, 0.7)):
        served.set("requests_running", running, model)
        served.set("kv_cache_usage_ratio", usage, model)
    snapshot = parse(served.text())
    both, one = History().add(snapshot), History("a").add(snapshot)
    assert (both.running, both.kv_cache_usage) == (7, 0.7)
    assert (one.running, one.kv_cache_usage) == (2, 0.1)


def test_what_is_old_is_forgotten() -> None:
    served, history = ServedMetrics(start=0), History(seconds=30)
    for second in range(100):
        history.add(parse(served.text(), now=float(second)))
    assert [each.time for each in history.figures] == [float(second) for second in range(69, 100)]


@given(st.lists(st.floats(0.001, 9.9), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    cumulative = {bound: float(sum(value <= bound for value in values)) for bound in (*BUCKETS, math.inf)}
    found = quantile(q, cumulative)
    true = np.quantile(values, q, method="inverted_cdf")
    edges = [0.0, *BUCKETS]
    bucket = next(i for i, bound in enumerate(BUCKETS) if true <= bound)
    assert found is not None and edges[bucket] - 1e-9 <= found <= edges[bucket + 1] + 1e-9


def test_above_the_last_bound_nothing_is_known_but_the_bound() -> None:
    assert quantile(0.95, {1.0: 0.0, 10.0: 1.0, math.inf: 100.0}) == 10.0
    assert quantile(0.5, {1.0: 0.0, math.inf: 0.0}) is None
    assert quantile(0.5, {}) is None
