"""The table of docs/monitoring.md and what /metrics gives are the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import serving
from machine_files import laptop, writer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from bitnet.monitor.collector import MachineCollector
from bitnet.monitor.sensors import Sensors

DOCUMENT = Path(__file__).parents[2] / "docs" / "monitoring.md"
# What a name says of its unit, the longest ending first.
UNITS = {
    "_start_time_seconds": "s since 1970", "_seconds": "s", "_tokens_total": "tokens", "_queries_total": "tokens",
    "_hits_total": "tokens", "_ratio": "0 to 1", "_bytes": "bytes", "_celsius": "°C", "_watts": "W", "_hertz": "Hz",
    "_cores": "cores", "_throttled": "0 or 1", "_info": "1", "": "requests",
}  # fmt: skip
Row = tuple[str, ...]


def table() -> dict[str, Row]:
    found = {}
    for line in DOCUMENT.read_text("utf-8").splitlines():
        cells = tuple(cell.strip() for cell in line.strip("| ").split(" | "))
        if line.startswith("| `bitnet_"):
            found[cells[0].strip("`")] = cells[1:]
    return found


def rows(text: str) -> dict[str, Row]:
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        unit = next(unit for ending, unit in UNITS.items() if name.endswith(ending))
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels or len(family.samples) == 1, f"{name} has no series"
        found[name] = (family.type, unit, ", ".join(f"`{each}`" for each in sorted(labels)), family.documentation)
    return found


@pytest.fixture
def machine(tmp_path: Path) -> str:
    """One that tells everything."""
    write = writer(tmp_path)
    firmware, group = "sys/devices/platform/soc/soc:firmware", "sys/fs/cgroup/user.slice/app.scope"
    root = write({**laptop(2), "proc/stat": "cpu0 1 0 0 1", f"{firmware}/get_throttled": "0"})
    write({f"{group}/cpu.max": "150000 100000"})
    write({"sys/class/hwmon/hwmon0/temp1_input": 50000, "sys/class/hwmon/hwmon0/power1_input": 5_000_000})
    write({"sys/class/power_supply/BAT0/type": "Battery", "sys/class/power_supply/BAT0/capacity": 63})
    clock = iter([0.0] + [1.0] * 9)
    sensors = Sensors(root, allowed=[0], clock=lambda: next(clock))
    write({"proc/stat": "cpu0 2 0 0 2"})
    registry = CollectorRegistry()
    registry.register(MachineCollector(sensors))
    return generate_latest(registry).decode()


def test_the_table_is_what_metrics_gives(client: serving.Client, machine: str) -> None:
    assert client.chat().status_code == 200
    assert table() == rows(client.get("/metrics").text + machine)


def test_no_series_says_when_it_began(client: serving.Client) -> None:
    assert not re.search(r"_created\b", client.get("/metrics").text)
