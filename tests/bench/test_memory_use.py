"""What the memory of a process goes to: parts that are exact, and a sum that is what the system counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import tiny

from bitnet import models
from bitnet.backends import make
from bitnet.bench import memory, memory_report
from bitnet.bench.memory import MemoryUse, Part
from bitnet.bench.speed import Test
from bitnet.bench.suite import Plan
from bitnet.engine.cache_size import block_bytes
from bitnet.models.synthetic import SyntheticCheckpoint

MIB = 2**20
MADE = MemoryUse("tiny", 1, "pp4", "cpu", "2bit", (Part("a", 3 * MIB, "known"),), 4 * MIB, 5 * MIB, 7 * MIB)


def test_resident_is_what_the_system_says() -> None:
    block = bytearray(64 * MIB)
    found, other = memory.resident(), psutil.Process().memory_info().rss
    assert abs(found - other) < 8 * MIB and found > len(block)


def test_weights_are_the_models_arrays() -> None:
    model = models.load(SyntheticCheckpoint("tiny"), make("reference"))
    found = memory.weights(model)
    assert found["norms"] == sum(w.nbytes for name, w in model.weights.items() if name.endswith("norm"))
    assert sum(found.values()) == sum({id(w): memory.stored_bytes(w) for w in model.weights.values()}.values())


def test_the_sum_is_what_is_resident(tiny_gguf: Path) -> None:
    """Of a process that does nothing else: what is known and measured is nearly all of it."""
    if not tiny.usable_isas():
        pytest.skip("without the core")
    command = [sys.executable, "-m", "bitnet", "bench", "--memory", "-t", "1", "-p", "300", "-n", "20", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    parts = {part["name"]: part["nbytes"] for part in found["parts"]}
    assert found["explained"] == sum(parts.values())
    assert found["unexplained"] == found["resident"] - found["explained"]
    assert abs(found["unexplained"]) < 0.35 * found["resident"]
    assert found["peak"] >= found["resident"] > 30 * MIB
    from bitnet import BitNet

    with BitNet(threads=1) as model:
        blocks = -(-320 // 16)
        assert parts["keys and values of 320 tokens"] == blocks * block_bytes(model.llm.model.config, "f16")
        stored = sum({id(w): memory.stored_bytes(w) for w in model.llm.model.weights.values()}.values())
        screen = parts.get("weights: screen of the head", 0)
        assert sum(size for name, size in parts.items() if name.startswith("weights")) == stored + screen


def test_a_larger_prompt_takes_a_larger_arena_and_cache() -> None:
    def parts(prompt: int) -> dict[str, int]:
        plan = Plan((Test(prompt, 2),), (1,), backend="reference")
        (found,) = memory.measure(SyntheticCheckpoint("tiny"), plan, lambda done, total: None)
        return {part.name.split(" of ")[0]: part.nbytes for part in found.parts}

    assert parts(200)["keys and values"] > parts(20)["keys and values"] > 0


def test_readers_get_the_numbers() -> None:
    text = "\n".join(memory_report.markdown([MADE]))
    assert "75.0 %" in text and "25.0 %" in text and "peak: 5.0 MiB" in text and "reserved: 7.0 MiB" in text
    (found,) = json.loads("".join(memory_report.as_json([MADE])))
    assert (found["explained"], found["unexplained"], found["resident"]) == (3 * MIB, MIB, 4 * MIB)
    assert json.loads(next(memory_report.json_lines([MADE]))) == found
