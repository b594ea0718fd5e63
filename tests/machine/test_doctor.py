"""What was chosen and why, what is advised, and the examination as a whole."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from machine_files import Write, laptop

_core = pytest.importorskip("bitnet._core")

from bitnet.errors import ParameterError
from bitnet.machine import Machine, look
from bitnet.machine import doctor as examination
from bitnet.machine.advice import warnings
from bitnet.machine.choices import better_sets, instruction_set, threads_reason
from bitnet.machine.doctor import examine, port_state, settings

X86 = ("avx2", "f16c", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")


def features(*present: str) -> dict[str, bool]:
    return {name: name in present for name in _core.cpu_features()}


def test_better_instruction_sets_are_named_with_what_the_cpu_lacks() -> None:
    assert better_sets("avx512_vnni", features(*X86)) == {
        "amx_int8": ["avx512_vbmi", "amx_tile", "amx_int8"],
        "avx512_vbmi": ["avx512_vbmi"],
    }
    assert better_sets("avx2", features("avx2", "f16c", "avx512f")) == {
        "amx_int8": [
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "avx512_vnni",
            "avx512_vbmi",
            "amx_tile",
            "amx_int8",
        ],
        "avx512_vbmi": ["avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_vbmi"],
        "avx512_vnni": ["avx512bw", "avx512dq", "avx512vl", "avx512_vnni"],
        "avx_vnni": ["avx_vnni"],
    }
    assert better_sets("neon", features("neon")) == {
        "neon_i8mm": ["neon_dotprod", "neon_i8mm"],
        "neon_dotprod": ["neon_dotprod"],
    }


def test_the_reason_of_the_instruction_set() -> None:
    assert instruction_set("avx512_vnni", features(*X86)).why.endswith("; avx512_vbmi needs avx512_vbmi")
    assert instruction_set("avx2", features(*X86), "avx2").why == "BITNET_ISA asks for it"


@pytest.mark.parametrize(
    "quota, allowed, why",
    [
        ("max", range(8), ["8 of 8 CPUs", "share 4 cores"]),
        ("max", [0, 1], ["2 of 8 CPUs"]),
        ("150000", [0, 1, 2], ["3 of 8 CPUs", "the time of 1.5, which is fewer"]),
    ],
)
def test_the_reason_of_the_threads(write: Write, quota: str, allowed: Any, why: list[str]) -> None:
    root = write({**laptop(8), "sys/fs/cgroup/cpu.max": f"{quota} 100000"})
    parts = threads_reason(look(root, allowed)).split("; ")
    assert len(parts) == len(why) and all(word in part for word, part in zip(why, parts, strict=True))


def topics(machine: Machine) -> list[str]:
    return [each.topic for each in warnings(machine)]


def test_a_machine_at_its_best_gets_no_advice(write: Write) -> None:
    files = {name: text for name, text in laptop(8).items() if "cpufreq" not in name and "throttle" not in name}
    root = write({**files, "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never"})
    assert topics(look(root, range(8))) == []


@pytest.mark.parametrize(
    "files, topic",
    [
        ({"sys/fs/cgroup/cpu.max": "300000 100000"}, "quota"),
        ({"sys/fs/cgroup/memory.max": 5 << 30}, "memory limit"),
        ({"proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable: 9000 kB"}, "memory"),
        ({"proc/meminfo": "MemAvailable: 9000 kB\nSwapTotal: 9000000 kB\nSwapFree: 5 kB"}, "swap"),
        ({"sys/class/hwmon/hwmon0/temp1_input": 98000, "sys/class/hwmon/hwmon0/temp1_crit": 100000}, "heat"),
        ({}, "throttling"),
        ({}, "governor"),
        ({}, "frequency"),
        ({}, "huge pages"),
    ],
)
def test_what_slows_a_machine_down_is_told(write: Write, files: dict[str, object], topic: str) -> None:
    plain = look(write(laptop(8)), range(8))
    worse = look(write(files), range(8))
    assert topic in topics(worse)
    assert not files or topic not in topics(plain)


def test_few_allowed_cpus_are_told(write: Write) -> None:
    assert "affinity" in topics(look(write(laptop(8)), [0, 1]))


def test_the_whole_examination_is_json_and_says_what_runs_here(write: Write) -> None:
    found = json.loads(json.dumps(examine(bandwidth=False)))
    assert list(found) == [
        "versions", "machine", "choices", "bandwidth", "self_test", "port", "environment", "warnings"
    ]  # fmt: skip
    assert found["choices"]["instruction set"]["value"] == _core.isa()
    assert found["choices"]["threads"]["value"] == _core.default_threads()
    assert list(found["self_test"]["isas"]) == _core.isas() and found["self_test"]["passed"]


def test_bandwidth_is_measured_for_one_thread_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "BANDWIDTH_BYTES", 1 << 20)
    found = examine()["bandwidth"]
    assert list(found) == list(dict.fromkeys(["1", str(_core.default_threads())]))
    assert all(rate > 0 for rate in found.values())


def test_an_instruction_set_that_is_not_there_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise ValueError('BITNET_ISA="mmx" is no instruction set')

    monkeypatch.setattr(examination, "choices", lambda machine, environment: refuse() if environment else [])
    assert examine(bandwidth=False, environment={"BITNET_ISA": "mmx"})["warnings"][0]["topic"] == "BITNET_ISA"


def test_a_port_that_is_taken_says_by_whom() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = port_state(port)
    assert found["free"] is False and found["why"]
    assert port_state(port) == {"free": True, "why": None, "process": None}
    for bad in (0, 65536):
        with pytest.raises(ParameterError, match=str(bad)):
            port_state(bad)


def test_settings_are_shown_and_secrets_are_not() -> None:
    given = {"BITNET_THREADS": "2", "BITNET_API_KEY": "abc", "HOME": "/root"}
    assert settings(given) == {"BITNET_API_KEY": "(set)", "BITNET_THREADS": "2"}
