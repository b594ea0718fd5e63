"""Memory on several nodes, as far as a machine with one can tell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from machine_files import Write

_core = pytest.importorskip("bitnet._core")

from bitnet.machine import look
from bitnet.machine.advice import numa
from bitnet.machine.choices import placement

NODE = "sys/devices/system/node"
TWO = {
    f"{NODE}/has_memory": "0-1,3",
    f"{NODE}/node0/cpulist": "0-3,8-11",
    f"{NODE}/node1/cpulist": "4-7,12-15",
    f"{NODE}/node2/cpulist": "16",
    f"{NODE}/node3/cpulist": "",
}


@pytest.mark.parametrize(
    "cpus, nodes", [(range(16), [0, 1]), ([3, 11], [0]), ([12], [1]), ([11, 12], [0, 1]), ([16], []), ([], [])]
)
def test_nodes_are_those_of_the_cpus_that_have_memory(write: Write, cpus: list[int], nodes: list[int]) -> None:
    assert _core.memory_nodes(list(cpus), str(write(TWO))) == nodes


@pytest.mark.parametrize("given", ["", "x", "-1", "0-", "0,,", "0-99999999999999"])
def test_a_list_that_cannot_be_read_gives_the_nodes_that_can(write: Write, given: str) -> None:
    root = write({f"{NODE}/has_memory": given, f"{NODE}/node0/cpulist": "0"})
    assert _core.memory_nodes([0], str(root)) in ([], [0])


def test_no_nodes_where_the_system_tells_of_none(write: Write) -> None:
    assert _core.memory_nodes([0], str(write({}))) == []


def test_the_first_node_may_be_interleaved_and_one_that_does_not_exist_may_not() -> None:
    if not Path(f"/{NODE}/node0").exists():
        pytest.skip("This system knows no nodes.")
    filtered = re.search(r"^Seccomp:\s*[12]", Path("/proc/self/status").read_text(), re.MULTILINE)
    if filtered and not _core.can_interleave([0]):
        pytest.skip("This container forbids it.")
    assert _core.can_interleave([0])
    assert not _core.can_interleave([900]) and not _core.can_interleave([]) and not _core.can_interleave([-1])


def test_a_refusal_is_told_where_it_matters(write: Write) -> None:
    meminfo = {f"{NODE}/node{i}/meminfo": f"Node {i} MemTotal: 1000 kB" for i in (0, 1, 900)}
    assert numa(look(write({**TWO, **meminfo}), allowed=[0, 1])) is None
    apart = {f"{NODE}/node900/cpulist": "40", f"{NODE}/node901/cpulist": "41"}
    more = {f"{NODE}/node901/meminfo": "Node 901 MemTotal: 1000 kB"}
    found = numa(look(write({**apart, **more}), allowed=[40, 41]))
    assert found is not None and "[900, 901]" in found.found


def test_the_choice_names_the_nodes() -> None:
    assert placement([0]).value == placement([]).value == "local"
    assert placement([0, 2]).value == "interleaved" and "[0, 2]" in placement([0, 2]).why
