"""The machine as Prometheus metrics: read when somebody asks, absent where the machine does not tell."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bitnet.monitor.sensors import Sensors


class MachineCollector(Collector):
    """For `registry.register`. The start that it tells is the moment of its making."""

    def __init__(self, sensors: Sensors | None = None) -> None:
        self._sensors = sensors or Sensors()
        self._start = time.time()

    def describe(self) -> list[Metric]:
        return []  # or else the registry would read the sensors to find out the names

    def collect(self) -> Iterator[Metric]:
        now = self._sensors.read()
        found = (
            family("cpu_usage_ratio", "Share of time that a core worked since the last scrape.", now.cpu, "core"),
            family("cpu_limit_cores", "Processors' worth of time that the control group grants.", now.cpu_limit),
            family("memory_used_bytes", "Memory in use on the machine or in the control group.", now.memory_used),
            family("memory_total_bytes", "Memory of the machine or of the control group.", now.memory_total),
            family("process_resident_bytes", "Resident memory of the server.", now.resident),
            family("temperature_celsius", "What each temperature sensor says.", now.temperature, "sensor"),
            family("power_watts", "Power that the machine itself measures.", now.power, "domain"),
            family("cpu_frequency_hertz", "Present frequency of a core.", now.frequency, "core"),
            family("battery_charge_ratio", "What is left in a battery.", now.battery, "battery"),
            family("throttled", "1 where a Raspberry Pi slows down, and why.", now.throttled, "reason"),
            family("start_time_seconds", "When the server started, in seconds since 1970.", self._start),
            family("info", "The version and the instruction set that is used.", *build()),
        )
        yield from (each for each in found if each.samples)


def family(name: str, help: str, values: Mapping[Any, float] | float | None, *labels: str) -> Metric:
    """One gauge; keys of several labels are tuples."""
    metric = GaugeMetricFamily(f"bitnet_{name}", help, labels=labels or None)
    if isinstance(values, Mapping):
        for key, value in values.items():
            metric.add_metric([str(each) for each in (key if isinstance(key, tuple) else (key,))], value)
    elif values is not None:
        metric.add_metric([], values)
    return metric


def build() -> tuple[dict[tuple[str, str], float], str, str]:
    from bitnet import __version__

    try:
        from bitnet._core import isa
    except ImportError:  # not built: the reference backend still runs
        return {(__version__, "reference"): 1.0}, "version", "isa"
    return {(__version__, isa()): 1.0}, "version", "isa"
