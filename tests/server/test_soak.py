"""tools/soak.py for a moment: everything at once, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import serving

SOAK = Path(__file__).parents[2] / "tools" / "soak.py"


@pytest.mark.skipif(serving.BACKEND != "cpu", reason="minutes without the core")
def test_nothing_is_lost_and_nothing_is_wrong() -> None:
    command = [sys.executable, str(SOAK), "--seconds", "3", "--connections", "100"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    assert done.returncode == 0, (found["examples"], done.stderr[-2000:])
    assert found["burst_right"] == 100 and found["seen"]["right"] > 0 and found["seen"]["left"] > 0
