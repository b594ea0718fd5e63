"""The machine on /metrics, as another's parser reads it."""

from __future__ import annotations

import time

import pytest
from machine_files import Write, laptop
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import bitnet
import bitnet._core as _core
from bitnet.monitor.collector import MachineCollector
from bitnet.monitor.sensors import Sensors


def scraped(sensors: Sensors) -> dict[str, dict[tuple[str, ...], float]]:
    """name -> the values of the labels, by the labels' names -> value."""
    registry = CollectorRegistry()
    registry.register(MachineCollector(sensors))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        family.name: {
            tuple(label for _, label in sorted(sample.labels.items())): sample.value for sample in family.samples
        }
        for family in families
    }


def test_what_is_told_is_exported_with_its_labels(write: Write) -> None:
    zone = "sys/class/thermal/thermal_zone0"
    root = write({**laptop(2), f"{zone}/type": 'odd "zone"', f"{zone}/temp": 45500, "proc/stat": "cpu0 1 0 0 1"})
    found = scraped(Sensors(root, allowed=[0]))
    assert found["bitnet_memory_total_bytes"] == {(): 16000000 * 1024}
    assert found["bitnet_memory_used_bytes"] == {(): 7000000 * 1024}
    assert found["bitnet_temperature_celsius"] == {('odd "zone"',): 45.5}
    assert found["bitnet_cpu_frequency_hertz"] == {("0",): 800e6}
    assert found["bitnet_info"] == {(_core.isa(), bitnet.__version__): 1.0}
    assert found["bitnet_start_time_seconds"][()] == pytest.approx(time.time(), abs=60)


def test_what_is_not_told_has_no_line_at_all(write: Write) -> None:
    found = scraped(Sensors(write({}), allowed=[0]))
    assert set(found) == {"bitnet_process_resident_bytes", "bitnet_start_time_seconds", "bitnet_info"}
