"""`bitnet tune`, and the runs after it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("bitnet._core")

Bitnet = Callable[..., subprocess.CompletedProcess[str]]
FAST = ("--seconds", "0.3")


def profiles(home: Path) -> list[Path]:
    return sorted((home / "bitnet/profiles").glob("*/*.json"))


def test_it_shows_what_it_tried_and_keeps_a_profile(bitnet: Bitnet, tmp_path: Path) -> None:
    result = bitnet("tune", *FAST, XDG_CONFIG_HOME=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert [name for name in ("threads", "chunk", "prompt t/s", "decode t/s") if name not in result.stdout] == []
    assert len(profiles(tmp_path)) == 1 and str(profiles(tmp_path)[0]) in result.stdout


def test_json_has_every_trial(bitnet: Bitnet, tmp_path: Path) -> None:
    result = bitnet("tune", *FAST, "--json", "--no-keep", "--synthetic", "tiny", XDG_CONFIG_HOME=str(tmp_path))
    found = json.loads(result.stdout)
    assert found["path"] is None and profiles(tmp_path) == []
    assert {"name", "value", "speed", "ratios", "kept"} == found["trials"][0].keys()
    assert found["profile"]["measured"]["after"]["generated_per_second"] > 0


def test_later_runs_use_the_profile_and_say_so(bitnet: Bitnet, tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    bitnet("tune", *FAST, **home)
    path = profiles(tmp_path)[0]
    profile = json.loads(path.read_text())
    path.write_text(json.dumps({**profile, "options": {"threads": 3}}))
    arguments = ("run", "ab", "-n", "3", "--temperature", "0", "--json")
    tuned = json.loads(bitnet(*arguments, **home).stdout)
    plain = json.loads(bitnet(*arguments, "--no-profile", **home).stdout)
    assert (tuned["threads"], tuned["profile"]) == (3, str(path))
    assert plain["profile"] is None and plain["text"] == tuned["text"]
    assert json.loads(bitnet(*arguments, "-t", "2", **home).stdout)["threads"] == 2
    assert "3 threads, tuned" in bitnet("run", "ab", "-n", "3", **home).stderr


def test_a_damaged_profile_is_told_and_stops_nothing(bitnet: Bitnet, tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    bitnet("tune", *FAST, **home)
    profiles(tmp_path)[0].write_text("{")
    result = bitnet("run", "ab", "-n", "3", **home)
    assert result.returncode == 0 and "is not used" in result.stderr


def test_a_home_that_cannot_be_written_is_an_error(bitnet: Bitnet, tmp_path: Path) -> None:
    (tmp_path / "bitnet").write_text("a file")
    assert bitnet("tune", *FAST, XDG_CONFIG_HOME=str(tmp_path)).returncode == 1
