"""The measuring script, on the emulated GPU: that every section gives what it promises, not how fast."""

from __future__ import annotations

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


def test_every_section_gives_its_numbers(script: Any, tmp_path: Path) -> None:
    counts = {"rows": (1, 9), "sweep": (1,), "contexts": (16,), "batches": (2,), "prompts": (20,)}
    sizes = script.Sizes(model="tiny", copied=4096, repeats=1, patience=1e6, **counts)
    found = script.main(["--out", str(tmp_path / "gpu.json")], EmulatedGPU(), sizes)
    assert json.loads((tmp_path / "gpu.json").read_text()).keys() == found.keys()
    failed = {name for name, section in found.items() if "failed" in section}
    assert failed <= {"transformers"}  # which may not be installed
    products = {name: value for name, value in found["correctness"].items() if name != "seconds"}
    assert len(products) == 8 and set(products.values()) == {"exact"}
    assert len(found["kernels"]) == 5
    assert found["decode"]["batch 1 context 16"]["tok/s on the device"] > 0
    assert found["batches"]["batch 2 context 16"]["GB/s"] > 0
    assert found["prompts"]["20 tokens"]["tok/s"] > 0


def test_a_section_over_its_cap_says_what_it_left_out(script: Any) -> None:
    section = script.Section("x", cap=-1)
    assert list(section.each([1, 2, 3])) == [1]
    assert section.results == {"left out": ["2", "3"]}
