"""Latencies: what they are counted from, and that nothing of them is lost on the way to a reader."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bitnet.bench import latency, latency_report
from bitnet.bench.latency import Latency, Spread
from bitnet.bench.speed import Sample, Test
from bitnet.bench.suite import Plan
from bitnet.errors import ParameterError
from bitnet.models.synthetic import SyntheticCheckpoint

SAMPLES = [Sample(10, 4_000_000, (1_000_000, 2_000_000)), Sample(20, 6_000_000, (3_000_000, 30_000_000))]
MADE = Latency("tiny", "bitnet", "scalar", "a processor", 2, "pp4+tg2", (4.0, 6.0), (1.0, 2.0, 3.0, 30.0))


def test_the_prompt_gives_the_first_token() -> None:
    assert latency.milliseconds(Test(4, 2), SAMPLES) == ((4.0, 6.0), (1.0, 2.0, 3.0, 30.0))


def test_without_a_prompt_the_first_step_does() -> None:
    assert latency.milliseconds(Test(0, 2), SAMPLES) == ((4.0, 6.0), (2.0, 30.0))


def test_spreads_are_numpys() -> None:
    values = [5.0, 1.0, 2.0, 9.0, 3.0]
    expected = (4.0, 3.0, *np.percentile(values, (95, 99)), 9.0)
    found = Spread.of(values)
    assert (found.mean, found.p50, found.p95, found.p99, found.max) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [1.0, 1.1, 1.2, 400.0], list(np.linspace(0.1, 7, 999))])
def test_every_token_is_in_a_bin(values: list[float]) -> None:
    edges, counts = latency.bins(values)
    assert len(edges) == len(counts) + 1 and sum(counts) == len(values)
    assert (edges[0], edges[-1]) == (min(values), max(values))
    lines = list(latency.histogram(values))
    assert sum(int(line.split()[-1].replace(",", "")) for line in lines) == len(values)
    assert max(line.count("█") for line in lines) == latency.BAR


def test_a_model_is_measured_in_every_test() -> None:
    plan = Plan((Test(4, 3), Test(0, 3, 8)), (1,), repetitions=2, backend="reference")
    found = list(latency.measure(SyntheticCheckpoint("tiny"), plan, lambda done, total: None))
    assert [(each.threads, each.test) for each in found] == [(1, "pp4+tg3"), (1, "tg3 @ d8")]
    assert [(len(each.first_ms), len(each.token_ms)) for each in found] == [(2, 6), (2, 4)]
    assert all(0 < each.token.p50 <= each.token.p99 <= each.token.max for each in found)
    with pytest.raises(ParameterError, match="at least two"):
        next(latency.measure(SyntheticCheckpoint("tiny"), Plan((Test(4, 1),)), lambda done, total: None))


def test_readers_get_the_numbers() -> None:
    text = "\n".join(latency_report.markdown([MADE]))
    first, later = (re.findall(r"\d+\.\d+", line) for line in text.splitlines() if "token " in line and "pp4" in line)
    assert first == ["5.00", "5.00", "5.90", "5.98", "6.00"] and later[0] == "9.00" and later[-1] == "30.00"
    (found,) = json.loads("".join(latency_report.as_json([MADE])))
    assert found["token_ms"] == [1, 2, 3, 30] and found["token"]["max"] == 30 and found["first_token"]["mean"] == 5
    assert json.loads(next(latency_report.json_lines([MADE]))) == found


def test_the_picture_holds_a_bar_for_every_token_and_a_line_for_every_quantile(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    latency_report.panel(axes, MADE, "#0072B2")
    assert sum(bar.get_height() for bar in axes.patches) == 4
    assert [line.get_xdata()[0] for line in axes.lines] == [MADE.token.p50, MADE.token.p95, MADE.token.p99]
    for name in ("a.svg", "a.png"):
        latency_report.draw([MADE, MADE], tmp_path / name)
    again = tmp_path / "b.svg"
    latency_report.draw([MADE, MADE], again)
    assert again.read_bytes() == (tmp_path / "a.svg").read_bytes()
