"""How many threads the core takes: physical cores, allowed CPUs, the time that control groups grant.

The core and the facts read the same files each in their own way, and must agree.
"""

from __future__ import annotations

import math

import pytest
from machine_files import CPU, Write, laptop

_core = pytest.importorskip("bitnet._core")

from bitnet.machine import look
from bitnet.machine.cgroup import limits

GROUPS = "sys/fs/cgroup"


@pytest.mark.parametrize(
    "cpus, threads", [(range(8), 4), ([0, 4], 1), ([0, 1], 2), ([0, 1, 4], 2), ([3, 7, 2, 6], 2), ([5], 1)]
)
def test_threads_of_one_core_count_once(write: Write, cpus: list[int], threads: int) -> None:
    root = write(laptop(8))
    assert _core.default_threads(list(cpus), str(root)) == threads == look(root, cpus).processor.allowed_cores


def test_without_topology_every_cpu_counts(write: Write) -> None:
    assert _core.default_threads([0, 1, 2], str(write({}))) == 3
    root = write(laptop(8))
    (root / CPU / "cpu4/topology/core_cpus_list").unlink()
    assert _core.default_threads([0, 4], str(root)) == 2
    assert _core.default_threads([], str(root)) == 1


@pytest.mark.parametrize(
    "group, files",
    [
        ("0::/", {"cpu.max": "150000 100000"}),
        ("0::/", {"cpu.max": "max 100000"}),
        ("0::/", {"cpu.max": "10000 100000"}),
        ("0::/", {"cpu.max": "900000 100000"}),
        ("0::/a/b", {"a/cpu.max": "250000 100000", "a/b/cpu.max": "300000 100000"}),
        ("0::/a/b", {"a/cpu.max": "max 100000", "a/b/cpu.max": "200000 100000"}),
        ("0::/a/b", {"unified/a/cpu.max": "200000 100000"}),
        ("0::/a/b", {"c/cpu.max": "100000 100000", "cpu.max": "nonsense"}),
        ("0::/../x", {"cpu.max": "300000 100000"}),
        ("3:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": 250000, "cpu,cpuacct/a/cpu.cfs_period_us": 100000}),
        ("3:cpu:/a\n0::/", {"cpu/cpu.cfs_quota_us": 200000, "cpu/cpu.cfs_period_us": 100000}),
        ("3:cpu:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": -1, "cpu/a/cpu.cfs_period_us": 100000}),
        ("3:cpuset:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": 100000, "cpu/a/cpu.cfs_period_us": 100000}),
        ("", {"cpu.max": "100000 100000"}),
        ("garbage", {"cpu/cpu.cfs_quota_us": 100000, "cpu/cpu.cfs_period_us": 50000}),
    ],
)
def test_a_granted_time_is_rounded_up_to_threads(write: Write, group: str, files: dict[str, object]) -> None:
    groups = {f"{GROUPS}/{name}": text for name, text in files.items()}
    root = write({**laptop(8), "proc/self/cgroup": group, **groups})
    granted = limits(root).cpus
    expected = 4 if granted is None else min(4, math.ceil(granted))
    assert _core.default_threads(list(range(8)), str(root)) == expected


def test_this_machines_own_files_are_the_default() -> None:
    assert _core.default_threads() == _core.default_threads(_core.allowed_cpus(), "")
