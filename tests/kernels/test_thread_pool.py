"""The pool alone, in a program of its own: every chunk once, whichever way chunks are dealt."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
POOL = ("core/runtime/thread_pool.cpp", "core/runtime/processors.cpp")
SANITIZERS = {"thread": ["-fsanitize=thread"], "none": []}


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.parametrize("sanitizer", SANITIZERS)
def test_every_chunk_runs_once(tmp_path: Path, sanitizer: str) -> None:
    sources = [Path(__file__).with_name("thread_pool.cpp"), *map(ROOT.joinpath, POOL)]
    flags = ["-std=c++20", "-O2", "-pthread", f"-I{ROOT / 'core'}", *SANITIZERS[sanitizer]]
    built = subprocess.run(["g++", *flags, *sources, "-o", tmp_path / "pool"], capture_output=True, text=True)
    if built.returncode and sanitizer != "none":
        pytest.skip("this compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([tmp_path / "pool"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stdout + done.stderr[-3000:]
