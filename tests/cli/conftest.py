"""The command as a user's shell starts it: a process of its own, without the tester's settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Result = subprocess.CompletedProcess[str]
BACKEND = "cpu" if find_spec("bitnet._core") else "reference"
BITNET = (sys.executable, "-m", "bitnet")


@pytest.fixture
def environment(tiny_gguf: Path, tmp_path: Path) -> dict[str, str]:
    """The tiny model, on the slow backend where the core is not built, and a home of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BITNET_")}
    own = {"BITNET_MODEL": str(tiny_gguf), "BITNET_BACKEND": BACKEND, "XDG_STATE_HOME": str(tmp_path / "state")}
    return {**inherited, **own, "COLUMNS": "100"}


@pytest.fixture
def bitnet(environment: dict[str, str]) -> Callable[..., Result]:
    """Run the command to its end; further keywords are environment variables."""

    def run(*arguments: object, stdin: str = "", **variables: str) -> Result:
        command = [*BITNET, *map(str, arguments)]
        env = {**environment, **variables}
        return subprocess.run(command, input=stdin, env=env, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start the command and leave it running, with pipes to it; ended after the test at the latest."""
    started = []

    def popen(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        } | options
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [*BITNET, *map(str, arguments)],
            env=environment,
            # A background job may have been started with SIGINT ignored, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **pipes,
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        process.kill()
        process.communicate()
