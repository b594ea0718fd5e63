"""A step allocates nothing in C++: its memory is the arena's and the threads' own scratch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("bitnet._core")
PROGRAM = """
import ctypes, os
import numpy as np
import tiny
from bitnet import _core, backends
from bitnet.backends.base import Step

count = ctypes.CDLL(os.environ["LD_PRELOAD"]).allocations
count.restype = ctypes.c_long
before = count()
model = tiny.load(tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"]), "cpu")
model.ops.add_screen(model.weights["lm_head"])
assert count() > before + 10, "the counter does not see the core"
cache = tiny.new_cache(model, 640, "f16")
plan = model.ops.compile(model, cache)
table = np.arange(40, dtype=np.int32)[None]

def step(first, tokens, top):
    positions = np.arange(first, first + tokens, dtype=np.int32)
    ends, want = np.array([0, tokens], np.int32), np.array([tokens - 1], np.int32)
    return Step(positions % 272, positions, ends, want, table, top)

rounds = 0
for threads in (1, 2):
    _core.set_threads(threads)
    for top in (0, 1, 40):
        steps = [step(0, 600, top)] + [step(600 + i, 1, top) for i in range(40)]
        taken = 1
        while taken:  # until every thread has had its share of the work, scratch may grow; then never again
            before = count()
            for each in steps:
                plan(each)
            taken = count() - before
            rounds += 1
            assert rounds < 100, f"{taken} allocations in {len(steps)} steps"
print("settled")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("gcc"), reason="needs Linux and gcc")
def test_no_step_allocates(tmp_path: Path) -> None:
    library = tmp_path / "allocations.so"
    source = Path(__file__).with_name("allocations.c")
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", source, "-o", library], check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "settled\n"
