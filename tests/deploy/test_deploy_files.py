"""What deploy/ says of the server is so: its options, its metrics, its ports and its programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import serving

from bitnet.cli.served_models import OPENERS
from bitnet.monitor.collector import MachineCollector
from bitnet.server.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
COMPOSE = ["compose.yaml", "compose.raspberry-pi.yaml"]
yaml = pytest.importorskip("yaml")


def expressions(node: Any) -> list[str]:
    """Every PromQL expression and query in it."""
    if isinstance(node, list):
        return [found for each in node for found in expressions(each)]
    if not isinstance(node, dict):
        return []
    own = [value for key, value in node.items() if key in ("expr", "query") and isinstance(value, str)]
    return own + [found for value in node.values() for found in expressions(value)]


def test_every_metric_of_the_dashboard_is_one_of_the_servers(tiny_gguf: Path) -> None:
    with serving.serving({"tiny": serving.opener(tiny_gguf)}) as client:
        assert client.chat().status_code == 200
        found = client.get("/metrics").text
    # What this machine may not tell, of one that tells everything.
    readings = SimpleNamespace(cpu_limit=1, memory_used=1, memory_total=1, resident=1)
    for name in ("cpu", "temperature", "power", "frequency", "battery", "throttled"):
        setattr(readings, name, {"a": 1.0})
    machine: Any = SimpleNamespace(read=lambda: readings)
    known = {metric.name for metric in MachineCollector(machine).collect()}
    known |= set(re.findall(r"^(bitnet_\w+)", found, re.M))
    named = {name for text in expressions(DASHBOARD) for name in re.findall(r"bitnet_\w+", text)}
    assert len(named) >= 15 and named <= known
    labels = {label for text in expressions(DASHBOARD) for label in re.findall(r"by \(([\w, ]+)\)", text)}
    assert {each.strip() for label in labels for each in label.split(",")} <= {"le", "model", "outcome"}


def test_the_dashboards_panels_are_whole_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        x, y, w, h = (panel["gridPos"][name] for name in "xywh")
        cells = {(column, row) for column in range(x, x + w) for row in range(y, y + h)}
        assert not cells & taken and x + w <= 24 and panel["targets"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        taken |= cells


def options() -> set[str]:
    """The variables that `bitnet serve` reads."""
    names = {*Settings.__dataclass_fields__, *OPENERS, "api_key_file"}
    return {f"BITNET_{name.upper()}" for name in names}


@pytest.mark.parametrize("name", COMPOSE)
def test_compose_files_set_options_that_there_are(name: str) -> None:
    found = yaml.safe_load((DEPLOY / name).read_text())
    service = found["services"]["bitnet"]
    assert set(service["environment"]) <= options() and service["ports"] == ["${BITNET_PORT:-8080}:8080"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["restart"] == "unless-stopped"
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert int(service["stop_grace_period"].removesuffix("s")) > int(service["environment"]["BITNET_DRAIN_TIMEOUT"])
    for each in found["services"].values():
        named = [volume.split(":")[0] for volume in each.get("volumes", ())]
        assert {volume for volume in named if not volume.startswith("/")} <= set(found["volumes"])
        assert {config["source"] for config in each.get("configs", ())} <= set(found.get("configs", ()))


@pytest.mark.parametrize("name", COMPOSE)
def test_docker_understands_the_compose_files(name: str) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "-f", str(DEPLOY / name), "config", "-q"]
    done = subprocess.run(command, env={**os.environ, "BITNET_API_KEY": "key"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """With a program that there is."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd is not installed")
    path = tmp_path / "bitnet.service"
    text = (DEPLOY / "bitnet.service").read_text()
    assert "/opt/bitnet/bin/bitnet serve" in text
    path.write_text(text.replace("/opt/bitnet/bin/bitnet", sys.executable))
    return path


def test_systemd_understands_the_unit(unit: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert done.returncode == 0 and "bitnet.service" not in done.stderr, done.stderr


def test_the_unit_is_hardened(unit: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", unit]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Unknown" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this systemd cannot analyse a file")
    (level,) = re.findall(r"Overall exposure level for bitnet.service: ([\d.]+)", done.stdout)
    assert float(level) < 2.0


def test_the_units_patience_is_longer_than_the_servers() -> None:
    text = (DEPLOY / "bitnet.service").read_text()
    (patience,) = re.findall(r"^TimeoutStopSec=(\d+)", text, re.M)
    assert int(patience) > Settings().drain_timeout and "--api-key-file" in text
    assert set(re.findall(r"BITNET_[A-Z_]+[A-Z]", text)) <= options() | {"BITNET_MODEL"}
