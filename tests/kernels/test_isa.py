"""The intended instruction set is the one running."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bitnet import _core


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_best_usable_instruction_set_runs() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "BITNET_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", "from bitnet import _core; print(_core.isa())"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.strip() == _core.isas()[0]


def test_scalar_is_always_there() -> None:
    assert _core.isas()[-1] == "scalar"


@pytest.mark.parametrize("name", _core.isas())
def test_environment_variable_chooses(name: str) -> None:
    assert run("from bitnet import _core; print(_core.isa())", BITNET_ISA=name).stdout.strip() == name


def test_unknown_name_in_the_environment_is_a_clear_error() -> None:
    done = run("from bitnet import _core; _core.isa()", BITNET_ISA="mmx")
    assert done.returncode != 0
    assert 'ValueError: BITNET_ISA="mmx"' in done.stderr
    assert ", ".join(_core.isas()) in done.stderr


def test_set_isa_switches_and_refuses(isa: str) -> None:
    assert _core.isa() == isa
    with pytest.raises(ValueError, match="scalar"):
        _core.set_isa("mmx")
    assert _core.isa() == isa


EVERYTHING = dict.fromkeys(_core.cpu_features(), True)
NEEDS = {  # written out a second time, because running an instruction that a CPU lacks ends the process
    "amx_int8": {
        *("avx2", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_vbmi"),
        *("amx_tile", "amx_int8"),
    },
    "avx512_vbmi": {
        *("avx2", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_vbmi"),
    },
    "avx512_vnni": {"avx2", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    "avx_vnni": {"avx2", "f16c", "avx_vnni"},
    "avx2": {"avx2", "f16c"},
    "sse41": {"ssse3", "sse4_1"},
    "neon_i8mm": {"neon", "neon_dotprod", "neon_i8mm"},
    "neon_dotprod": {"neon", "neon_dotprod"},
    "neon": {"neon"},
    "scalar": set(),
}


def test_a_cpu_that_has_everything_runs_every_set_best_first() -> None:
    assert _core.isas_for(EVERYTHING) == list(NEEDS)


@pytest.mark.parametrize("missing", [*EVERYTHING])
def test_a_cpu_that_lacks_a_feature_never_gets_a_set_that_needs_it(missing: str) -> None:
    got = _core.isas_for(EVERYTHING | {missing: False})
    assert got == [name for name, needs in NEEDS.items() if missing not in needs]


def test_this_cpu_gets_what_its_features_allow() -> None:
    assert _core.isas() == _core.isas_for(_core.cpu_features())


def test_a_bare_cpu_gets_scalar() -> None:
    assert _core.isas_for({}) == ["scalar"]
    with pytest.raises(ValueError, match="mmx"):
        _core.isas_for({"mmx": True})


def test_threads_are_allowed_cpus() -> None:
    assert 1 <= _core.default_threads() <= len(_core.allowed_cpus())
    _core.set_threads(3)
    assert _core.threads() == 3
    with pytest.raises(ValueError, match="threads"):
        _core.set_threads(0)


def test_a_forked_child_gets_its_own_threads() -> None:
    code = """
import os, numpy as np
from bitnet import _core
_core.set_threads(2)
w = _core.TernaryWeight.random(4096, 1024, 1)
x = np.ones((4, 1024), np.float32)
before = _core.linear(x, [w])[0]
pid = os.fork()
if pid == 0:
    os._exit(0 if (_core.linear(x, [w])[0] == before).all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert (_core.linear(x, [w])[0] == before).all()
"""
    assert run(code).stderr == ""
