"""The measuring script, on the emulated GPU: that every section gives what it promises, not how fast."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from emulated_gpu import EmulatedGPU

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def sizes(script: Any) -> Any:
    counts = {"sweep": (1,), "contexts": (16, 512), "batches": (2,), "prompts": (20,)}
    extent = script.gpu_check.Extent(((64, 70),), (1, 9), positions=40, vocab=700, built_in=False, tokens=2)
    return script.Sizes(model="tiny", check=extent, copied=4096, repeats=1, patience=1e6, **counts)


def test_every_section_gives_its_numbers(script: Any, tmp_path: Path) -> None:
    found = script.main(["--out", str(tmp_path / "gpu.json")], EmulatedGPU(), sizes(script))
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() == found.keys()
    assert not {name for name, section in found.items() if "failed" in section}
    assert not script.gpu_check.wrong_ones(found["check"])
    tests = {name.partition(" ")[0] for name in found["check"] if not name.startswith("without")}
    assert {"ternary", "attention", "tokens"} < tests
    assert len(found["kernels"]) == 5
    assert found["decode"]["batch 1 context 512"]["tok/s on the device"] > 0
    assert found["batches"]["batch 2 context 512"]["GB/s"] > 0
    assert len([name for name in found["sampled"] if ", drawn " in name]) == 2
    assert found["prompts"]["20 tokens"]["int8 TOP/s"] > 0
    # Without torch, or without a GPU for it, the peers' rows say why there is nothing.
    assert all(isinstance(value, str) for name, value in found["peers"].items() if name != "seconds")


def test_the_bar_stands_in_the_markdown(script: Any) -> None:
    decode = {"tok/s on the device": 2500.0, "tok/s with the host": 2400.0, "GB/s": 3000.0}
    found = {
        "environment": {"date": "2026-01-02", "gpu": "Card", "compute capability": 9.0, "triton": "3.9"},
        "limits": {"copy, GB/s": 4000.0, "int8 peak by the clock, TOP/s": 2000.0, "seconds": 1.0},
        "decode": {"batch 1 context 512": decode},
        "batches": {"failed": "DeviceError: it fell"},
        "prompts": {"2048 tokens": {"tok/s": 100000.0, "int8 TOP/s": 400.0}},
        "peers": {"transformers, BitNet": {"tok/s": 40.0}, "torch, dense bf16 in a CUDA graph": "no torch"},
    }
    text = script.markdown(found)
    assert (
        "| decode, batch 1 context 512 | 2,500 tok/s (2,400 with the host) | 2,100 tok/s | 3,000 GB/s, 75% of a copy"
        in text
    )
    assert "| batch 64 context 512 | not measured | 50,000 tok/s |  |" in text
    assert "| prompt of 2048 tokens | 100,000 tok/s | 150,000 tok/s | 400 TOP/s, 20% of the int8 peak |" in text
    assert "| batch 1, against transformers, BitNet | 60.0 times | 5 times | 40.0 tok/s |" in text
    assert "| failed | DeviceError: it fell |" in text
    for table in text.split("\n\n")[1:]:  # every row has as many cells as its head
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1, table


def test_a_card_that_computes_something_else_is_not_timed(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Its head finds one logit too few."""
    launch = EmulatedGPU.launch

    def wrong(gpu: EmulatedGPU, kernel: Any, grid: Any, values: Any, shared: int = 0) -> None:
        launch(gpu, kernel, grid, values, shared)
        if kernel.name == "select_largest":
            counts = (ctypes.c_int * 1).from_address(values[-3])
            counts[0] -= 1

    monkeypatch.setattr(EmulatedGPU, "launch", wrong)
    monkeypatch.setattr(script.gpu_check, "TESTS", (script.gpu_check.likeliest_logits,))
    with pytest.raises(SystemExit, match="emulated does not compute what the CPU does: nothing is timed"):
        script.main(["--out", str(tmp_path / "gpu.json")], EmulatedGPU(), sizes(script))
    assert "likeliest logits 40 of them: 39 were found" in capsys.readouterr().out
    assert "limits" not in json.loads((tmp_path / "gpu.json").read_text())


def test_without_a_card_it_says_so(script: Any) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(SystemExit, match="NVIDIA"):
            script.main([])
    else:
        pytest.skip("there is a driver here")


def test_a_section_over_its_cap_says_what_it_left_out(script: Any) -> None:
    section = script.Section("x", cap=-1)
    assert list(section.each([1, 2, 3])) == [1]
    assert section.results == {"left out": ["2", "3"]}
