"""How engines take turns, and what comes of their samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.made import FACTS, result

from bitnet.bench.engines import Engine
from bitnet.bench.peers.process import PeerError
from bitnet.bench.report import read
from bitnet.bench.results import Facts, compared
from bitnet.bench.speed import Sample, Test
from bitnet.bench.suite import Plan, rounds, run
from bitnet.errors import ContextError, ParameterError
from bitnet.models.synthetic import SyntheticCheckpoint

A, B = Test(4, 0), Test(0, 2)


class Scripted(Engine):
    """Notes its calls in `log` and fails at call number `fails`."""

    def __init__(self, name: str, log: list[tuple[str, Test]], fails: int = -1) -> None:
        self.facts = Facts(**{**FACTS, "engine": name})
        self._name, self._log, self._fails, self._calls = name, log, fails, 0

    def timed(self, test: Test, threads: int) -> Sample:
        self._log.append((self._name, test))
        self._calls += 1
        if self._calls - 1 == self._fails:
            raise PeerError("gone")
        return Sample(1000 * threads, 1000, (1000,) * test.n_gen)

    def peak_rss(self) -> int | None:
        return None

    def close(self) -> None:
        pass


def test_engines_take_turns_within_each_case_and_turn_round() -> None:
    log: list[tuple[str, Test]] = []
    engines = [Scripted("x", log), Scripted("y", log)]
    samples = rounds(engines, [(1, A), (1, B)], Plan((A, B), repetitions=2, n_batch=2), print, print)
    warm = [Test(2, 0), B]
    expected = [(name, test) for test in warm for name in "yx"]  # every other time the other way round
    expected += [(name, test) for test in (A, B) for name in "xy"]
    expected += [(name, test) for test in (A, B) for name in "yx"]
    assert log == expected
    assert [(engine.facts.engine, test, len(found)) for (engine, (_, test)), found in samples.items()] == [
        ("x", A, 2), ("y", A, 2), ("x", B, 2), ("y", B, 2)
    ]  # fmt: skip


def test_a_peer_that_fails_leaves_what_it_has_given_and_the_others_go_on() -> None:
    log: list[tuple[str, Test]] = []
    notes: list[str] = []
    engines = [Scripted("x", log), Scripted("y", log, fails=4)]  # 0, 1: warming up
    samples = rounds(engines, [(1, A), (1, B)], Plan((A, B), repetitions=3), print, notes.append)
    assert [(engine.facts.engine, test, len(found)) for (engine, (_, test)), found in samples.items()] == [
        ("x", A, 3), ("y", A, 1), ("x", B, 3), ("y", B, 1)
    ]  # fmt: skip
    assert notes == ["y stopped at pp4 with 1 threads: gone"]


def test_ratios_are_medians_of_pairs_of_the_same_repetition() -> None:
    ours = result(B, [100, 200, 400])
    peer = result(B, [300, 400, 2000], engine="llama.cpp", model_type="bitnet 1M TQ2_0")
    early = result(B, [500], engine="litespark", model_type="1M 2bit")
    other = result(A, [500], engine="litespark", model_type="1M 2bit")
    found = compared([ours, peer, early, other])
    assert [(r.ratio, r.ratio_least, r.ratio_most) for r in found] == [
        (None, None, None), (pytest.approx(3), pytest.approx(2), pytest.approx(5)), (5, 5, 5), (None, None, None)
    ]  # fmt: skip
    assert found[1].label == "llama.cpp TQ2_0"


def test_the_cost_of_depth_is_time_over_bytes() -> None:
    shallow = result(Test(0, 1), [1000], weight_bytes=9000, position_bytes=1000)  # 1 position: 10,000 bytes
    deep = result(Test(0, 1, 10), [3000], weight_bytes=9000, position_bytes=1000)  # 20,000
    peer = result(Test(0, 1, 10), [9000], engine="llama.cpp")
    costs = [r.depth_cost for r in compared([deep, shallow, peer])]
    assert costs == [pytest.approx(3 / 2), None, None]


def test_latencies_are_those_of_all_tokens_of_all_repetitions() -> None:
    found = result(Test(0, 100), [100_000_000, 300_000_000])  # steps of 1 ms and of 3 ms
    assert (found.p50_ms, found.p95_ms, found.p99_ms) == (2, 3, 3)
    assert found.first_token_ms == 2 and found.avg_ts == pytest.approx((1000 + 1000 / 3) / 2)
    prompt = result(Test(8, 0), [5_000_000, 9_000_000, 6_000_000])
    assert (prompt.first_token_ms, prompt.p50_ms) == (6, None)


def test_bandwidth_is_bytes_times_rate() -> None:
    found = result(Test(0, 3, 10), [3_000_000], weight_bytes=988_000, position_bytes=1000, read=2.0)
    assert (found.bytes_per_token, found.kv_bytes_per_token) == (1_000_000, 12_000)
    assert found.gb_per_s == pytest.approx(1.0) and found.bandwidth_share == pytest.approx(0.5)


def test_a_run_tells_its_conditions() -> None:
    plan = Plan((Test(8, 0), Test(0, 3)), repetitions=2, backend="reference")
    prompt, decode = run(SyntheticCheckpoint("tiny"), plan, lambda done, total: None)
    assert (prompt.model, prompt.engine, prompt.load_s) == ("tiny", "bitnet", None)  # made, not loaded
    assert len(prompt.samples_ns) == len(decode.samples_ns) == 2 and decode.p50_ms and prompt.p50_ms is None
    assert abs(sum(decode.samples_ns) / 2e6 / 3 / decode.p50_ms - 1) < 20
    assert decode.peak_rss_bytes is None or decode.peak_rss_bytes > (decode.weights_bytes or 0) > 0
    assert (
        prompt.options
        == {"repetitions": 2, "head": "auto", "weights": "auto", "kernel": "auto", "ctx_size": 0, "force": False}
        and prompt.logits_hash != "varies"
    )


def test_a_test_beyond_the_context_is_refused() -> None:
    with pytest.raises(ContextError, match="11 positions"):
        next(run(SyntheticCheckpoint("tiny"), Plan((Test(0, 3, 8),), ctx_size=10), lambda done, total: None))


def test_records_are_read_back(tmp_path: Path) -> None:
    results = [result(A, [100, 200]), result(B, [300], engine="llama.cpp")]
    path = tmp_path / "results.json"
    for text in (
        json.dumps([each.to_json() for each in results]),
        "\n".join(json.dumps(each.to_json()) for each in results),
    ):
        path.write_text(text)
        assert read(path) == results
    for text in ("", "hello", "[1]", '[{"n_gen": 1}]', '{"n_gen": 1}', "[" * 10**5):
        path.write_text(text)
        with pytest.raises(ParameterError):
            read(path)
    with pytest.raises(ParameterError, match="cannot be read"):
        read(tmp_path)
