"""What lies around the process: the system, a container, a virtual machine, an emulator; and how hot it is."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bitnet.machine.files import ROOT, fields, number, numbered, text
from bitnet.machine.processor import sysctl


@dataclass(frozen=True, slots=True)
class Surroundings:
    """container, hypervisor, emulator: the name of what was recognised, None where nothing was."""

    system: str
    container: str | None
    hypervisor: str | None
    emulator: str | None


@dataclass(frozen=True, slots=True)
class Temperature:
    """Degrees Celsius. limit: where the sensor says it becomes critical."""

    sensor: str
    now: float
    limit: float | None


def surroundings(root: Path = ROOT) -> Surroundings:
    return Surroundings(f"{platform.system()} {platform.release()}", container(root), hypervisor(root), emulator(root))


def container(root: Path) -> str | None:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    # systemd writes what it was told (https://systemd.io/CONTAINER_INTERFACE).
    told = text(root / "run/systemd/container")
    groups = (text(root / "proc/1/cgroup") or "") + (text(root / "proc/self/cgroup") or "")
    known = re.search(r"kubepods|docker|lxc|containerd", groups)
    return told or (known[0] if known else None)


def hypervisor(root: Path) -> str | None:
    if "microsoft" in (text(root / "proc/sys/kernel/osrelease") or "").lower():
        return "wsl"
    named = text(root / "sys/hypervisor/type") or text(root / "sys/class/dmi/id/product_name") or ""
    known = re.search(r"kvm|qemu|vmware|virtualbox|xen|hyper-v|virtual machine|firecracker", named, re.IGNORECASE)
    if known:
        return known[0].lower()
    return "unknown" if "hypervisor" in fields(root / "proc/cpuinfo").get("flags", "").split() else None


def emulator(root: Path) -> str | None:
    """Code of another machine type, translated: hundreds of times too slow, or without the vectors that matter."""
    if root == ROOT and sysctl("sysctl.proc_translated") == "1":
        return "rosetta"
    # A system registers an emulator for machine types that are not its own.
    registered = (root / f"proc/sys/fs/binfmt_misc/qemu-{platform.machine()}").exists()
    model = fields(root / "proc/cpuinfo").get("model name", "")
    return "qemu" if registered or model.startswith(("QEMU TCG", "QEMU Virtual")) else None


def temperatures(root: Path = ROOT) -> tuple[Temperature, ...]:
    """Those of hwmon, or of the thermal zones where there are none."""
    return chip_temperatures(root) or zone_temperatures(root)


def chip_temperatures(root: Path = ROOT) -> tuple[Temperature, ...]:
    found = []
    for _, chip in numbered(root / "sys/class/hwmon", "hwmon"):
        for path in sorted(chip.glob("temp*_input")):
            sensor = path.name.removesuffix("_input")
            label = " ".join(filter(None, (text(chip / "name"), text(chip / f"{sensor}_label"))))
            limit = number(chip / f"{sensor}_crit") or number(chip / f"{sensor}_max")
            found.append((label or chip.name, number(path), limit))
    return degrees(found)


def zone_temperatures(root: Path = ROOT) -> tuple[Temperature, ...]:
    zones = numbered(root / "sys/class/thermal", "thermal_zone")
    return degrees((text(zone / "type") or zone.name, number(zone / "temp"), trip(zone)) for _, zone in zones)


def degrees(found: Iterable[tuple[str, int | None, int | None]]) -> tuple[Temperature, ...]:
    return tuple(Temperature(name, now / 1000, limit / 1000 if limit else None) for name, now, limit in found if now)


def trip(zone: Path) -> int | None:
    """The temperature at which a zone becomes critical."""
    for path in sorted(zone.glob("trip_point_*_type")):
        if text(path) == "critical":
            return number(path.with_name(path.name.removesuffix("type") + "temp"))
    return None
