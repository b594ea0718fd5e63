"""docs/serving.md: its commands work, and it leaves out no route, option, metric or ignored field."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import serving

from bitnet import BitNet
from bitnet.server.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
COMMANDS = re.findall(r"```sh\n(curl .*)\n```", TEXT)


@pytest.fixture(scope="module")
def server() -> Iterator[serving.Client]:
    with serving.serving({"stories": lambda: BitNet(threads=1, backend=serving.BACKEND)}) as opened:
        yield opened


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.findall(r"8080(\S*)", command)[0])
def test_its_commands_work(server: serving.Client, command: str) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    words = shlex.split(command.replace("http://127.0.0.1:8080", str(server.base_url).rstrip("/")))
    done = subprocess.run([*words, "--fail-with-body", "--max-time", "120"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout and '"error":{"message"' not in done.stdout


def test_it_names_every_route_and_has_a_command_for_each_that_the_schema_has(server: serving.Client) -> None:
    schema = server.get("/openapi.json").json()
    called = {path for command in COMMANDS for path in re.findall(r"8080(/[^\s']*)", command)}
    paths = {path.replace("{name}", "stories") for path in schema["paths"]}
    refused = {path for path in paths if server.request("POST", path, json={"model": "stories"}).status_code == 501}
    assert paths - refused - {"/api/delete"} <= called
    assert all(f"`{path}`" in TEXT or f" {path}`" in TEXT for path in schema["paths"] if "{" not in path)


def test_it_names_every_option() -> None:
    missing = [name for name in Settings.__dataclass_fields__ if f"--{name.replace('_', '-')}" not in TEXT]
    assert not missing


def test_it_names_every_metric(server: serving.Client) -> None:
    server.chat()
    found = set(re.findall(r"^# TYPE (bitnet_\w+) (?!unknown)", server.get("/metrics").text, re.M))
    ours = {name for name in found if not name.endswith("_created")}
    extra = {"bitnet_cpu_limit_cores", "bitnet_battery_charge_ratio", "bitnet_throttled"}
    assert {name for name in ours - extra if name not in TEXT} == set()


def test_it_names_every_field_that_is_ignored() -> None:
    sources = Path(serving.__file__).parents[1] / "src" / "bitnet" / "server"
    named = set(re.findall(r"`(\w+)`", TEXT))
    refused = {"conversation", "prompt", "moderation", "options"}  # or ignored only beside others of its kind
    for path in sources.rglob("*.py"):
        ignored = set(re.findall(r"^    (\w+): Any = None", path.read_text(), re.M)) - refused
        assert ignored <= named, path.name
