"""Watts, where the machine tells: energy counters of RAPL, sensors of hwmon, and a battery that is being drained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitnet.machine.files import ROOT, number, numbered, text

MICRO = 1e-6


@dataclass(frozen=True, slots=True)
class Energy:
    """Microjoules since some moment; the counter goes back to 0 after `most`, which is None where it never does."""

    counted: int
    most: int | None = None

    def since(self, before: Energy) -> float | None:
        """Joules; None where the counter was set back."""
        spent = self.counted - before.counted
        if spent < 0 and self.most is not None:
            spent += self.most
        return spent * MICRO if spent >= 0 else None


def energies(root: Path = ROOT) -> dict[str, Energy]:
    """The counters that this user may read: by default Linux shows RAPL's to root alone (CVE-2020-8694)."""
    found = {name: value for name, folder in rapl_zones(root) if (value := energy(folder, "energy_uj")) is not None}
    for name, path in hwmon(root, "energy*_input"):  # amd_energy
        if (counted := number(path)) is not None:
            found[name] = Energy(counted)
    return found


def energy(folder: Path, name: str) -> Energy | None:
    counted = number(folder / name)
    return None if counted is None else Energy(counted, number(folder / "max_energy_range_uj"))


def rapl_zones(root: Path) -> Iterator[tuple[str, Path]]:
    """("package-0", its folder), ("package-0/core", ...). intel-rapl-mmio counts the same packages again."""
    powercap = root / "sys/class/powercap"
    for package, folder in numbered(powercap, "intel-rapl:"):
        name = text(folder / "name") or folder.name
        yield name, folder
        for _, part in numbered(powercap, f"intel-rapl:{package}:"):
            yield f"{name}/{text(part / 'name') or part.name}", part


def hwmon(root: Path, pattern: str) -> Iterator[tuple[str, Path]]:
    for _, chip in numbered(root / "sys/class/hwmon", "hwmon"):
        for path in sorted(chip.glob(pattern)):
            label = text(chip / f"{path.name.partition('_')[0]}_label")
            yield " ".join(filter(None, (text(chip / "name") or chip.name, label))), path


def watts(root: Path = ROOT) -> dict[str, float]:
    """What is told as power, without counting."""
    found = {name: power * MICRO for name, path in hwmon(root, "power*_average") if (power := number(path)) is not None}
    for name, path in hwmon(root, "power*_input"):
        if (power := number(path)) is not None:
            found.setdefault(name, power * MICRO)
    for battery in batteries(root):
        drain = discharge(battery)
        if drain is not None:
            found[battery.name] = drain
    return found


def batteries(root: Path = ROOT) -> list[Path]:
    folders = sorted((root / "sys/class/power_supply").glob("*"))
    # Of a mouse or a phone that is connected the scope is "Device".
    return [each for each in folders if text(each / "type") == "Battery" and text(each / "scope") != "Device"]


def discharge(battery: Path) -> float | None:
    """Watts; None while it is not being drained. Some drivers count what flows out as negative."""
    if text(battery / "status") != "Discharging":
        return None
    power = number(battery / "power_now")
    if power is not None:
        return abs(power) * MICRO
    current, voltage = number(battery / "current_now"), number(battery / "voltage_now")
    return None if current is None or voltage is None else abs(current) * MICRO * voltage * MICRO


def charge(root: Path = ROOT) -> dict[str, float]:
    """Of each battery, between 0 and 1."""
    found = {each.name: number(each / "capacity") for each in batteries(root)}
    return {name: percent / 100 for name, percent in found.items() if percent is not None}
