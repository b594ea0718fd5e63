"""The comparison of kernels: complete, in the units that it names, and leaving the machine as it was."""

from __future__ import annotations

import json

import pytest

from bitnet.backends.packing import BITS
from bitnet.bench import kernels
from bitnet.bench.report import FORMATS

_core = pytest.importorskip("bitnet._core")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> list[kernels.KernelResult]:
    monkeypatch.setattr(kernels, "PLACES", {"L2": (32, 192, 1), "memory": (48, 192, 2)})
    monkeypatch.setattr(kernels, "WINDOW", 0.0)
    monkeypatch.setattr(kernels, "Bandwidth", lambda backend: lambda threads: 12.5)
    before = _core.isa(), _core.threads()
    found = list(kernels.compare([1], 1, lambda doing: None))
    assert _core.isa() == before[0]
    _core.set_threads(before[1])
    return found


def test_every_packing_is_measured_everywhere(results: list[kernels.KernelResult]) -> None:
    found = {(r.place, r.weights, r.isa, r.tokens) for r in results}
    assert found == {
        (place, weights, isa, tokens)
        for place in ("L2", "memory")
        for weights in BITS
        for isa in _core.isas()
        for tokens in kernels.TOKENS
    }
    assert len(found) == len(results)


def test_the_rates_belong_together(results: list[kernels.KernelResult]) -> None:
    for r in results:
        assert r.bits * r.gweights_per_s / 8 / r.tokens == pytest.approx(r.gb_per_s)
        if r.place == "memory" and r.tokens == 1:
            assert r.bandwidth_share == pytest.approx(r.gb_per_s / 12.5)
        else:
            assert r.bandwidth_share is None


@pytest.mark.parametrize("output", ["json", "jsonl", "csv"])
def test_the_formats_are_those_of_models(results: list[kernels.KernelResult], output: str) -> None:
    lines = [*FORMATS[output](results)]  # type: ignore[arg-type]
    assert len(lines) == {"json": 1, "jsonl": len(results), "csv": len(results) + 1}[output]
    if output == "json":
        assert json.loads(lines[0])[0]["weights"] == "2bit"


def test_markdown_is_a_table(results: list[kernels.KernelResult]) -> None:
    lines = [*kernels.markdown(results)]
    assert len(lines) == 2 + len(results) + 1
    assert {line.count("|") for line in lines[:-1]} == {len(kernels.HEADS) + 1}
