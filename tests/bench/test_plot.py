"""The picture: the points and lines that it holds, and the files that it becomes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench.made import result

from bitnet.bench import plot
from bitnet.bench.speed import Test
from bitnet.errors import ParameterError

matplotlib = pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

STYLES = {"bitnet": plot.STYLES[0], "llama.cpp TQ2_0": plot.STYLES[1]}
DECODES = [
    result(Test(0, 2), [1_000_000] * 2, read=40.0),
    result(Test(0, 2), [1_500_000] * 2, threads=1, read=30.0),
    result(Test(0, 2, 64), [1_200_000] * 2, read=40.0),
    result(Test(0, 2), [2_500_000] * 2, read=40.0, engine="llama.cpp", model_type="bitnet 1M TQ2_0"),
]
PROMPTS = [result(Test(64, 0), [9_000_000])]


def offsets(axes: Any) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for scatter in axes.collections for x, y in np.asarray(scatter.get_offsets())}


def test_points_are_bytes_and_rates_under_the_measured_bandwidth() -> None:
    axes = Figure().subplots()
    plot.generating(axes, DECODES, STYLES)
    assert offsets(axes) == {((r.bytes_per_token or 0) / 1e6, r.avg_ts) for r in DECODES}
    lines = [np.multiply(*line.get_data()) for line in axes.lines]  # MB times tokens a second
    assert sorted(float(each) for line in lines for each in line) == pytest.approx([30e3, 30e3, 40e3, 40e3])
    assert {text.get_text() for text in axes.texts} == {"tiny", "tiny @ 64"}
    words = [text.get_text() for text in axes.get_legend().get_texts()]
    assert words[:2] == ["bitnet", "llama.cpp TQ2_0"] and "read bandwidth, 1 thread: 30.0 GB/s" in words


def test_prompts_lie_over_lines_of_equal_arithmetic() -> None:
    axes = Figure().subplots()
    plot.reading(axes, PROMPTS, STYLES)
    assert offsets(axes) == {(0.003, PROMPTS[0].avg_ts)}
    for line in axes.lines:
        first, second = np.log10(np.multiply(*line.get_data()))
        assert first == pytest.approx(second) and first == pytest.approx(round(first))


@pytest.mark.parametrize("suffix, magic", [(".svg", b"<?xml"), (".PNG", b"\x89PNG")])
def test_the_same_results_give_the_same_file(tmp_path: Path, suffix: str, magic: bytes) -> None:
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    for path in (first, second):
        plot.check(path)
        plot.draw([*DECODES, *PROMPTS], path)
    assert first.read_bytes() == second.read_bytes() and first.read_bytes().startswith(magic)


def test_other_files_and_nothing_to_draw_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "plot.jpeg", tmp_path / "plot", tmp_path / "nowhere" / "plot.svg"):
        with pytest.raises(ParameterError):
            plot.check(path)
    with pytest.raises(ParameterError, match="nothing to draw"):
        plot.draw([], tmp_path / "plot.svg")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ParameterError, match="needs matplotlib"):
        plot.check(tmp_path / "plot.svg")
