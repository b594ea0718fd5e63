"""pull, list, show and rm, as processes of their own, against a hub on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import StandIn, stand_in

Bitnet = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., "subprocess.Popen[bytes]"]
BIG = bytes(12 << 20)  # huggingface_hub hands on 10 MB at a time


@pytest.fixture
def hub(environment: dict[str, str], tmp_path: Path) -> Iterator[StandIn]:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"):
        environment.pop(name, None)
    with stand_in() as server:
        environment.update({"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": server.url})
        yield server


@pytest.fixture
def tiny(hub: StandIn, tiny_gguf: Path) -> bytes:
    data = tiny_gguf.read_bytes()
    card = b"---\nlicense: mit\n---\n# tiny"
    hub.add("org/tiny", {"tiny-TQ2_0.gguf": data, "tiny-F16.gguf": data + bytes(32), "README.md": card})
    return data


def wait_for(what: Callable[[], Any]) -> None:
    while not what():
        time.sleep(0.02)


def three_lines(text: str) -> bool:
    return [line.split(":")[0] for line in text.splitlines()] == ["error", "  why", "  fix"]


def test_a_name_runs_like_a_path(bitnet: Bitnet, tiny: bytes, tiny_gguf: Path) -> None:
    line = ("run", "hello", "-n", 4, "--temp", 0, "--no-stats", "-m")
    by_path, by_name = bitnet(*line, tiny_gguf), bitnet(*line, "org/tiny")
    assert by_name.returncode == 0 and by_name.stdout == by_path.stdout
    assert "Fetching org/tiny (487 kB) into " in by_name.stderr
    again = bitnet(*line, "org/tiny", "--offline")
    assert (again.stdout, again.stderr) == (by_path.stdout, "")


def test_offline_says_what_to_do(bitnet: Bitnet, hub: StandIn) -> None:
    result = bitnet("run", "hello", "-m", "org/tiny", "--offline")
    assert result.returncode == 1 and three_lines(result.stderr) and "bitnet pull org/tiny" in result.stderr
    assert hub.requests == []


@pytest.mark.parametrize("status, code", [(404, "RepoNotFound"), (401, ""), (403, "GatedRepo"), (429, ""), (502, "")])
def test_a_refusal_is_three_lines(bitnet: Bitnet, hub: StandIn, status: int, code: str) -> None:
    hub.add("org/shut", {}, status=status, code=code)
    result = bitnet("pull", "org/shut")
    assert result.returncode == 1 and three_lines(result.stderr) and result.stdout == ""


def test_several_files_are_listed_to_choose_from(bitnet: Bitnet, hub: StandIn) -> None:
    hub.add("org/two", {"a-Q8_0.gguf": b"a", "b-F16.gguf": b"b"})
    result = bitnet("pull", "org/two")
    assert result.returncode == 2 and "Q8_0 (1 bytes), F16 (1 bytes)" in result.stderr
    assert "org/two:Q8_0" in result.stderr


def test_an_interrupted_pull_is_continued(start: Start, bitnet: Bitnet, hub: StandIn, tmp_path: Path) -> None:
    repository = hub.add("org/big", {"big-F16.gguf": BIG})
    home = tmp_path / "hf" / "hub" / "models--org--big"
    partial = home / "blobs" / f"{repository.etag('big-F16.gguf')}.incomplete"
    hub.stop_after, hub.stall = 11 << 20, threading.Event()
    pulling = start("pull", "org/big")
    wait_for(lambda: partial.exists() and partial.stat().st_size)
    pulling.send_signal(signal.SIGINT)
    pulling.communicate()
    assert pulling.returncode == 130
    kept = partial.stat().st_size
    assert kept and not (home / "snapshots").exists()
    again = bitnet("pull", "org/big")
    assert again.returncode == 0 and "of them here from last time" in again.stderr
    assert hub.fetched("big-F16.gguf") == ["", f"bytes={kept}-"]
    assert Path(again.stdout.strip()).read_bytes() == BIG


def test_a_killed_pull_leaves_nothing_under_a_name(start: Start, hub: StandIn, tmp_path: Path) -> None:
    repository = hub.add("org/big", {"big-F16.gguf": BIG})
    home = tmp_path / "hf" / "hub" / "models--org--big"
    partial = home / "blobs" / f"{repository.etag('big-F16.gguf')}.incomplete"
    hub.stop_after, hub.stall = 11 << 20, threading.Event()
    pulling = start("pull", "org/big")
    wait_for(lambda: partial.exists() and partial.stat().st_size)
    pulling.kill()
    pulling.communicate()
    assert [path.name for path in home.rglob("*") if path.is_file()] == [partial.name]


def test_two_pulls_of_one_model_fetch_it_once(start: Start, hub: StandIn, tmp_path: Path) -> None:
    hub.add("org/big", {"big-F16.gguf": BIG})
    hub.stop_after, hub.stall = 11 << 20, threading.Event()
    first = start("pull", "org/big")
    wait_for(lambda: hub.fetched("big-F16.gguf"))
    second = start("pull", "org/big")
    wait_for(lambda: sum(path.startswith("/api") for _, path, _ in hub.requests) == 2)
    hub.stall.set()
    outputs = [each.communicate()[0].decode() for each in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0) and outputs[0] == outputs[1]
    assert Path(outputs[0].strip()).read_bytes() == BIG and hub.fetched("big-F16.gguf") == [""]


def test_the_list_shows_what_can_be_opened(bitnet: Bitnet, tiny: bytes) -> None:
    assert "no models" in bitnet("list").stdout
    bitnet("pull", "org/tiny:TQ2_0")
    (row,) = json.loads(bitnet("list", "--json").stdout)
    assert row["name"] == "org/tiny:TQ2_0" and row["bytes"] == len(tiny) and row["runs"] == "yes"
    assert row["architecture"] == "bitnet-b1.58" and row["weights"] == "TQ2_0"
    table = bitnet("list").stdout
    assert "org/tiny:TQ2_0" in table and "487 kB" in table and "just now" in table


def test_a_card_tells_what_a_model_is(bitnet: Bitnet, tiny: bytes) -> None:
    missing = bitnet("show", "org/tiny")
    assert missing.returncode == 1 and "bitnet pull org/tiny" in missing.stderr
    path = Path(bitnet("pull", "org/tiny:TQ2_0").stdout.strip())
    (path.parent / "README.md").write_text("---\nlicense: mit\n---\n# tiny")
    card = json.loads(bitnet("show", "org/tiny", "--json").stdout)
    assert card["license"] == "mit" and card["context"] == 4096 and card["chat_template"] is False
    assert card["files"] == [{"name": "tiny-TQ2_0.gguf", "bytes": len(tiny)}]
    assert card["parameters"] == json.loads(bitnet("inspect", path, "--json").stdout)["parameters"]
    assert "license          mit" in bitnet("show", "org/tiny").stdout


def test_removing_one_file_leaves_the_others(bitnet: Bitnet, tiny: bytes, tmp_path: Path) -> None:
    bitnet("pull", "org/tiny:TQ2_0")
    bitnet("pull", "org/tiny:F16")
    assert bitnet("rm", "org/tiny:F16").returncode == 2  # nobody to ask
    result = json.loads(bitnet("rm", "org/tiny:F16", "--yes", "--json").stdout)
    assert result["freed"] == len(tiny) + 32
    assert [row["name"] for row in json.loads(bitnet("list", "--json").stdout)] == ["org/tiny:TQ2_0"]
    assert "487 kB are free" in bitnet("rm", "org/tiny", "--yes").stdout
    assert json.loads(bitnet("list", "--json").stdout) == []
    assert not (tmp_path / "hf" / "hub" / "models--org--tiny").exists()
    assert bitnet("rm", "org/tiny", "--yes").returncode == 1


def test_removing_takes_what_an_unfinished_download_left(bitnet: Bitnet, hub: StandIn, tmp_path: Path) -> None:
    home = tmp_path / "hf" / "hub" / "models--org--big"
    (home / "blobs").mkdir(parents=True)
    (home / "blobs" / "0123.incomplete").write_bytes(bytes(5000))
    assert json.loads(bitnet("rm", "org/big", "--yes", "--json").stdout)["freed"] == 5000
    assert not home.exists()


def test_known_models_have_names_and_sizes(bitnet: Bitnet, hub: StandIn) -> None:
    rows = json.loads(bitnet("list", "--known", "--json").stdout)
    assert all(row["repo"].count("/") == 1 for row in rows) and hub.requests == []
    assert "microsoft/bitnet-b1.58-2B-4T-gguf:I2_S" in bitnet("list", "--known").stdout


def test_what_is_no_name_is_a_wrong_argument(bitnet: Bitnet, hub: StandIn) -> None:
    for name in ("nonsense", "models/none.gguf", "../a", "a/b/c"):
        assert bitnet("pull", name).returncode == 2
