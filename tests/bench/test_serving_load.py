"""Load on a server: what is sent, when, and whether what is told of it is so."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
from bench.timed_server import TimedServer

from bitnet.bench.serving.client import Record
from bitnet.bench.serving.load import Load, run
from bitnet.bench.serving.report import FORMATS
from bitnet.bench.serving.shapes import Lengths, arrivals
from bitnet.bench.serving.summary import PERCENTILES, Summary, good, spread
from bitnet.errors import BitNetError, ParameterError

SHORT = {"input_len": Lengths.parse("20"), "output_len": Lengths.parse("4"), "num_prompts": 6}
# https://docs.vllm.ai/en/latest/cli/bench/serve.html writes a record with these.
VLLM = (
    "date endpoint_type model_id num_prompts request_rate burstiness max_concurrency duration completed "
    "total_input_tokens total_output_tokens request_throughput request_goodput output_throughput "
    "total_token_throughput"
)
VLLM_TIMES = [f"{kind}_{m}_ms" for kind in ("mean", "median", "std", "p99") for m in ("ttft", "tpot", "itl", "e2el")]


def loaded(server: TimedServer, **options: Any) -> Summary:
    with server.listening() as url:
        return run(Load(base_url=url, **{**SHORT, **options}))


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_delays_that_are_known_are_found(endpoint: str) -> None:
    found = loaded(TimedServer(first=0.2, gap=0.05), endpoint=endpoint)
    fields, details = found.fields, found.details
    assert fields["completed"] == 6 and fields["failed"] == 0 and fields["total_output_tokens"] == 6 * 4
    assert all(0.2 <= ttft < 0.2 + serving.PATIENCE for ttft in details["ttfts"])
    assert all(e2el >= 0.2 + 3 * 0.05 for e2el in details["e2els"])
    assert [len(itls) for itls in details["itls"]] == [3] * 6
    assert fields["max_concurrent_requests"] == 6 and fields["duration"] >= 0.35
    for ttft, e2el, itls in zip(details["ttfts"], details["e2els"], details["itls"], strict=True):
        assert ttft + sum(itls) <= e2el


def test_prompts_have_the_lengths_asked_for_though_a_template_adds_to_them() -> None:
    for endpoint in ("completions", "chat"):
        found = loaded(TimedServer(), endpoint=endpoint, input_len=Lengths.parse("30-60"), num_prompts=20)
        lengths = found.details["input_lens"]
        assert all(30 <= length <= 60 for length in lengths) and len(set(lengths)) > 5
        assert found.fields["total_input_tokens"] == sum(lengths)


def test_a_closed_loop_has_so_many_under_way() -> None:
    server = TimedServer(first=0.05)
    found = loaded(server, num_prompts=9, max_concurrency=3)
    assert server.most_at_once == 3 == found.fields["max_concurrent_requests"]
    assert found.fields["duration"] >= 3 * 0.05 and found.fields["completed"] == 9


def test_an_open_loop_keeps_to_its_rate_however_slow_the_server_is() -> None:
    server = TimedServer(first=0.5)
    found = loaded(server, num_prompts=8, request_rate=40.0, burstiness=math.inf)
    came = server.arrived[2:]  # after the two that ask for the count of tokens
    assert came[-1] - came[0] >= 7 / 40 - 0.1 and found.details["start_times"] == pytest.approx(np.arange(8) / 40)
    assert found.fields["max_concurrent_requests"] > 1


def test_arrivals_are_as_chance_has_them_or_steady() -> None:
    rng = np.random.default_rng(1)
    poisson = np.diff(arrivals(5, 1, 20_000, rng))
    assert poisson.mean() == pytest.approx(0.2, rel=0.05) and poisson.std() == pytest.approx(0.2, rel=0.05)
    bursts = np.diff(arrivals(5, 0.25, 20_000, rng))
    assert bursts.mean() == pytest.approx(0.2, rel=0.05) and bursts.std() == pytest.approx(0.4, rel=0.1)
    assert np.diff(arrivals(5, math.inf, 50, rng)) == pytest.approx(0.2)
    assert not arrivals(math.inf, 1, 50, rng).any() and arrivals(5, 1, 3, rng)[0] == 0


@pytest.mark.parametrize("text, low, high, mean", [
    ("128", 128, 128, 128),
    ("64-256", 64, 256, 160),
    ("normal:128,16", 1, 300, 128),
    ("exponential:50", 1, 1000, 50),
    ("lognormal:100,0.5", 1, 2000, 100 * math.exp(0.125)),
])  # fmt: skip
def test_lengths_are_drawn_from_their_distribution(text: str, low: int, high: int, mean: float) -> None:
    drawn = Lengths.parse(text).draw(np.random.default_rng(0), 20_000)
    assert low <= drawn.min() and drawn.max() <= high and drawn.mean() == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize("text", ["", "0", "-5", "9-3", "many", "normal:5", "normal:nan,1", "gamma:1,2", "inf", "1e30"])
def test_what_is_no_distribution_is_refused(text: str) -> None:
    with pytest.raises(ParameterError):
        Lengths.parse(text)


def test_the_same_seed_makes_the_same_load() -> None:
    servers = TimedServer(), TimedServer(), TimedServer()
    for server, seed in zip(servers, (1, 1, 2), strict=True):
        loaded(server, seed=seed, max_concurrency=1, input_len=Lengths.parse("5-50"))
    one, same, other = ([body["prompt"] for body in server.requests] for server in servers)
    assert one == same != other


def test_prompts_share_what_they_are_told_to() -> None:
    server = TimedServer()
    found = loaded(server, prefix_len=50, num_prefixes=2, num_prompts=20)
    prompts = [body["prompt"].split() for body in server.requests[2:]]
    assert len({tuple(prompt[:50]) for prompt in prompts}) == 2
    assert len({tuple(prompt[50:]) for prompt in prompts}) == 20
    assert found.details["input_lens"] == [70] * 20


@pytest.mark.parametrize("fails, told", [("429", "HTTP 429: busy"), ("cut", "broke off")])
def test_failures_are_counted_and_told(fails: str, told: str) -> None:
    found = loaded(TimedServer(fails=fails), num_prompts=7, max_concurrency=1)
    assert found.fields["completed"] == 4 and found.fields["failed"] == 3
    assert any(told in note and "3 failed" in note for note in found.notes)
    assert found.fields["total_output_tokens"] == 4 * 4  # of the whole ones


def test_a_server_that_counts_no_tokens_is_said() -> None:
    found = loaded(TimedServer(counts=False))
    assert found.fields["completed"] == 6 and found.fields["total_output_tokens"] == 24
    assert any("does not count" in note for note in found.notes)


def test_goodput_counts_those_that_met_every_objective() -> None:
    record = Record(started=10.0, sent=10.0, times=[10.2, 10.3, 10.6], ended=10.6, output_tokens=3)
    assert good(record, {"ttft": 201, "itl": 301, "tpot": 201, "e2el": 601})
    for name, bound in (("ttft", 199), ("itl", 299), ("tpot", 199), ("e2el", 599)):
        assert not good(record, {name: bound})
    all_good = loaded(TimedServer(first=0.05), slo={"ttft": 1e6}).fields
    assert all_good["request_goodput"] == all_good["request_throughput"]
    assert loaded(TimedServer(first=0.05), slo={"ttft": 49}).fields["request_goodput"] == 0


def test_percentiles_are_those_of_the_values() -> None:
    values = np.random.default_rng(3).exponential(5, 1001).tolist()
    found, cuts = spread("ttft", values), statistics.quantiles(values, n=100, method="inclusive")
    for p in PERCENTILES:
        assert found[f"p{p}_ttft_ms"] == pytest.approx(cuts[p - 1])
    assert found["median_ttft_ms"] == pytest.approx(statistics.median(values))
    assert found["mean_ttft_ms"] == pytest.approx(statistics.fmean(values))
    assert found["std_ttft_ms"] == pytest.approx(statistics.pstdev(values))


def test_every_format_tells_the_same() -> None:
    found = [loaded(TimedServer()), loaded(TimedServer(), max_concurrency=2)]
    whole = json.loads("".join(FORMATS["json"](found, False)))
    lines = [json.loads(line) for line in FORMATS["jsonl"](found, True)]
    assert {*VLLM.split(), *VLLM_TIMES} <= set(whole[0]) and "itls" not in whole[0] and len(lines[1]["itls"]) == 6
    assert [each["duration"] for each in whole] == [each["duration"] for each in lines]
    text = "\n".join(FORMATS["md"](found, False))
    assert f"{whole[0]['p99_ttft_ms']:.2f}" in text and "2 of 2" in text and "model: words" in text


def test_it_agrees_with_what_our_server_counts(tiny_gguf: Path) -> None:
    with serving.serving({"tiny": serving.opener(tiny_gguf, ctx_size=1024)}) as client:
        load = Load(
            base_url=f"{client.base_url}/v1",
            num_prompts=8,
            input_len=Lengths.parse("100"),
            output_len=Lengths.parse("12"),
            options={"ignore_eos": True},
        )
        found = run(load).fields
        told = client.get("/metrics").text
    counted = {name: value(told, f'bitnet_{name}_tokens_total{{model="tiny"}}') for name in ("prompt", "generation")}
    assert found["completed"] == 8 and found["total_output_tokens"] == 8 * 12 == counted["generation"] - 2
    assert 0 < found["total_input_tokens"] < counted["prompt"]
    assert 80 < found["total_input_tokens"] / 8 < 120  # a byte a token: words differ much in length
    assert value(told, 'bitnet_requests_total{model="tiny",outcome="length"}') == 8 + 2


def value(metrics: str, name: str) -> float:
    return float(next(line for line in metrics.splitlines() if line.startswith(name)).split()[-1])


def test_no_server_is_said() -> None:
    with pytest.raises(BitNetError, match="does not answer"):
        run(Load(base_url="http://127.0.0.1:9"))


def bench_serve(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bitnet", "bench", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_measures_every_rate_and_bound() -> None:
    with TimedServer().listening() as url:
        done = bench_serve(
            "--base-url", url, "-n", 4, "-r", "50,inf", "-c", "1,2", "--output-len", 3, "-o", "jsonl", "--slo",
            "ttft=90000,itl=90000", "--served-model", "others",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        asked = [(each["request_rate"], each["max_concurrency"]) for each in found]
        assert asked == [(50.0, 1), (50.0, 2), ("inf", 1), ("inf", 2)]
        assert all(each["model_id"] == "others" and each["request_goodput"] > 0 for each in found)


def test_the_command_fails_where_requests_did() -> None:
    with TimedServer(fails="429").listening() as url:
        done = bench_serve("--base-url", url, "-n", 4, "--output-len", 3)
    assert done.returncode == 1 and "HTTP 429" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments, code, words", [
    (("--base-url", "http://127.0.0.1:9"), 1, "bitnet serve"),
    (("--base-url", "nowhere"), 2, "no URL"),
    (("-r", "0"), 2, "more than 0"),
    (("--slo", "speed=3"), 2, "ttft"),
    (("--slo", "ttft=soon"), 2, "ttft"),
    (("--endpoint", "rerank"), 2, "completions, chat"),
    (("-o", "xml"), 2, "jsonl"),
    (("--input-len", "long"), 2, "lognormal"),
])  # fmt: skip
def test_mistakes_of_the_command_are_explained(arguments: tuple[str, ...], code: int, words: str) -> None:
    done = bench_serve(*arguments)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
