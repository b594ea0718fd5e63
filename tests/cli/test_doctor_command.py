"""`bitnet doctor`: for people and for scripts, and its exit code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_core = pytest.importorskip("bitnet._core")

from bitnet.cli import doctor_tables
from bitnet.cli.prospects import prospects
from bitnet.machine import selftest
from bitnet.models.synthetic import SyntheticCheckpoint

Bitnet = Callable[..., subprocess.CompletedProcess[str]]


def test_it_says_what_it_found_and_chose(bitnet: Bitnet) -> None:
    result = bitnet("doctor", "--no-bandwidth", BITNET_THREADS="3")
    assert result.returncode == 0, result.stderr
    for line in ("CPU", "instruction set", "threads", "port 8080", "weights", "cache", "BITNET_THREADS", *_core.isas()):
        assert any(each.startswith(f"{line} ") for each in result.stdout.splitlines()), line


def test_json_has_the_same(bitnet: Bitnet) -> None:
    found = json.loads(bitnet("doctor", "--json", "--port", "8321", "--no-bandwidth").stdout)
    assert found["port"]["port"] == 8321 and found["self_test"]["passed"] is True
    assert found["machine"]["features"] == _core.cpu_features()


def test_the_instruction_set_that_the_user_chose_is_in_use(bitnet: Bitnet) -> None:
    found = json.loads(bitnet("doctor", "--json", "--no-bandwidth", BITNET_ISA="scalar").stdout)
    assert found["choices"]["instruction set"] == {"value": "scalar", "why": "BITNET_ISA asks for it"}
    wrong = bitnet("doctor", "--no-bandwidth", BITNET_ISA="mmx")
    assert wrong.returncode == 0 and 'BITNET_ISA="mmx"' in wrong.stdout


def test_it_says_how_a_model_would_run(bitnet: Bitnet, tiny_gguf: Path) -> None:
    found = json.loads(bitnet("doctor", "--json", "-m", tiny_gguf, "--no-bandwidth").stdout)["model"]
    ternary, dense = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256), 320 * 256
    assert found["path"] == str(tiny_gguf) and found["fits"] and found["profile"] is None
    assert 0 <= found["weight_bytes"] - (ternary // 4 + 2 * dense) <= 4 * 8 * 512
    assert found["cache_bytes_per_token"] == 2 * 2 * 2 * 64 * 2
    assert (found["ctx_size"], found["contexts_at_once"]) == (4096, 8)


def test_a_model_that_cannot_be_opened_keeps_nothing_else_back(bitnet: Bitnet) -> None:
    result = bitnet("doctor", "-m", "missing.gguf", "--no-bandwidth")
    assert result.returncode == 3 and "missing.gguf" in result.stdout and "scalar " in result.stdout
    found = json.loads(bitnet("doctor", "-m", "missing.gguf", "--no-bandwidth", "--json").stdout)
    assert "missing.gguf" in found["model"]["error"] and found["self_test"]["passed"]


@pytest.mark.parametrize("tokens, contexts", [(8 * 4096, 8), (4096 * 7 + 5, 7), (4096, 1), (4095, 0), (0, 0)])
def test_contexts_that_fit_are_counted(tokens: int, contexts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnet.engine.cache_size import SHARE

    monkeypatch.setattr("bitnet.backends.cpu.settled", lambda asked, count, room: "2bit")
    checkpoint = SyntheticCheckpoint("2B-4T")
    weights = prospects(checkpoint, None)["weight_bytes"]
    free = int(tokens * 76800 / SHARE) + 1
    assert prospects(checkpoint, weights + free)["contexts_at_once"] == contexts
    assert prospects(checkpoint, weights - 1)["fits"] is False
    assert prospects(checkpoint, None)["contexts_at_once"] is None


def test_a_wrong_kernel_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from bitnet.cli.main import main

    def wrong(core: Any) -> None:
        raise selftest.Wrong("7 in place of 8")

    monkeypatch.setitem(selftest.OPERATIONS, "ternary products", wrong)
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--no-bandwidth"])
    assert left.value.code == 1
    assert "WRONG: ternary products: 7 in place of 8" in capsys.readouterr().out


def test_a_port_out_of_range_is_a_usage_error(bitnet: Bitnet) -> None:
    assert bitnet("doctor", "--port", "70000").returncode == 2


@pytest.mark.parametrize("ids, shown", [((0, 1, 2, 5), "0-2,5"), ((3,), "3"), ((), "none"), ((1, 3), "1,3")])
def test_cpus_are_shown_as_ranges(ids: tuple[int, ...], shown: str) -> None:
    assert doctor_tables.ranges(list(ids)) == shown
