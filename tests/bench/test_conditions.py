"""The machine that was measured on: what is said of it, and how it is told."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import bitnet
from bitnet.bench.conditions import Disturbance, build, warnings

MEASURE = """
import numpy as np
from bitnet.bench.conditions import PeakMemory
large = np.ones(16 << 20)  # 128 MiB
del large
peak = PeakMemory()
before = peak()
small = np.ones(4 << 20)
del small
print(peak() - before)
"""


def test_warnings_name_what_disturbed() -> None:
    calm = {1: [30.0, 31.0], 2: [40.0]}
    assert warnings((0.01, 0.0), calm) == []
    assert warnings((0.25, 0.10), calm) == [
        "other processes took 25 % of the processors' time",
        "the hypervisor took 10 % of the processors' time (steal)",
    ]
    assert warnings((0.0, 0.0), {1: [30.0, 20.0]}) == ["the read bandwidth of 1 threads went from 30.0 to 20.0 GB/s"]


def test_our_own_work_is_nobody_elses() -> None:
    disturbance = Disturbance()
    before = disturbance._now()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    others, stolen = disturbance.shares()
    after = disturbance._now()
    assert 0 <= others <= 1 and 0 <= stolen <= 1
    assert after[2] > before[2]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak is known only once it is exceeded")
def test_the_peak_is_that_since_it_was_asked_for() -> None:
    """In a process of its own: nothing else may take or give back memory meanwhile."""
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=300, check=True)
    assert 24 << 20 < int(done.stdout) < 100 << 20


def test_the_build_begins_with_the_version() -> None:
    assert build().startswith(bitnet.__version__)
