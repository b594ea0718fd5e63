"""An examination of the machine, for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from bitnet.cli.inspection_tables import pipeable
from bitnet.cli.text import printable

GIB = 2**30
Line = tuple[str, str]


def show(found: dict[str, Any]) -> None:
    console = pipeable()
    for title, section in SECTIONS.items():
        lines = [(name, value) for name, value in section(found) if value]
        if lines:
            console.print(table(title, lines))
            console.print()


def table(title: str, lines: list[Line]) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    made.add_column(min_width=16)
    made.add_column(overflow="fold")
    for name, value in lines:
        made.add_row(Text(printable(name), style="dim"), Text(printable(value)))
    return made


def machine(found: dict[str, Any]) -> Iterator[Line]:
    here = found["machine"]
    cpu, memory, limits = here["processor"], here["memory"], here["limits"]
    yield "CPU", f"{cpu['model'] or 'unknown'}, {cpu['architecture']}"
    yield "cores", f"{count(cpu['cores'])} with {count(cpu['logical'])} threads; {ranges(cpu['allowed'])} allowed"
    yield "features", ", ".join(name for name, present in here["features"].items() if present)
    yield "caches", ", ".join(map(cache, cpu["caches"]))
    yield "NUMA", "; ".join(map(node, cpu["nodes"]))
    yield "frequency", frequency(cpu["frequency"])
    yield "temperature", ", ".join(f"{t['sensor']} {t['now']:.0f} °C" for t in here["temperatures"])
    yield "memory", f"{gib(here['available'])} of {gib(memory['total'])} can be had"
    yield "swap", f"{gib(memory['swap_used'])} of {gib(memory['swap_total'])} used" if memory["swap_total"] else ""
    yield "huge pages", memory["huge_pages"] or "unknown"
    yield "control group", "; ".join(control_group(limits)) or "no limits"
    yield "system", ", ".join(surroundings(here["surroundings"]))
    yield "versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())


def frequency(f: dict[str, Any]) -> str:
    parts = [f"{f['now']} MHz" if f["now"] else "", f"of {f['most']}" if f["most"] else ""]
    parts += [f"governor {f['governor']}" if f["governor"] else ""]
    return " ".join(filter(None, parts))


def control_group(limits: dict[str, Any]) -> Iterator[str]:
    if limits["cpus"] is not None:
        yield f"the time of {limits['cpus']:g} CPUs"
    if limits["memory"] is not None:
        yield f"{gib(limits['memory'])} of memory"


def surroundings(here: dict[str, Any]) -> Iterator[str]:
    yield here["system"]
    if here["container"]:
        yield f"in a container ({here['container']})"
    if here["hypervisor"]:
        yield "virtual machine" + (f" ({here['hypervisor']})" if here["hypervisor"] != "unknown" else "")
    if here["emulator"]:
        yield f"emulated ({here['emulator']})"


def chosen(found: dict[str, Any]) -> Iterator[Line]:
    for name, choice in found["choices"].items():
        yield name, f"{choice['value']}: {choice['why']}"
    for name, value in found["environment"].items():
        yield name, value or '""'


def model(found: dict[str, Any]) -> Iterator[Line]:
    here = found["model"]
    yield "file", here["path"]
    if "error" in here:
        yield "error", here["error"]
        return
    fits = "" if here["fits"] else ": more than there is"
    yield "weights", f"{amount(here['weight_bytes'])} of memory{fits}; ternary ones at {here['weights']}"
    at_once = "" if here["contexts_at_once"] is None else f"; {here['contexts_at_once']} can be full at once"
    yield "cache", f"{amount(here['cache_bytes_per_token'])} a token, {here['ctx_size']} tokens of context{at_once}"
    settings = ", ".join(f"{name} {value}" for name, value in here["options"].items() if value not in (0, "auto"))
    yield "profile", f"{here['profile']} ({settings})" if here["profile"] else here["note"] or "none: bitnet tune"


def measured(found: dict[str, Any]) -> Iterator[Line]:
    for threads, rate in (found["bandwidth"] or {}).items():
        yield "memory", f"{rate:.1f} GB/s read with {threads} thread{'s' * (threads != '1')}"
    port = found["port"]
    by = f" by {port['process']}" if port["process"] else ""
    yield f"port {port['port']}", "free" if port["free"] else f"in use{by}: {port['why']}"


def tested(found: dict[str, Any]) -> Iterator[Line]:
    for isa, operations in found["self_test"]["isas"].items():
        wrong = [f"{name}: {state}" for name, state in operations.items() if state != "ok"]
        yield isa, "WRONG: " + "; ".join(wrong) if wrong else f"right in all {len(operations)} operations"


def warned(found: dict[str, Any]) -> Iterator[Line]:
    for warning in found["warnings"]:
        yield warning["topic"], f"{warning['found']} {warning['advice']}"


SECTIONS = {
    "Machine": machine,
    "Chosen": chosen,
    "Model": model,
    "Measured": measured,
    "Self-test, against NumPy": tested,
    "Warnings": warned,
}


def gib(nbytes: int | None) -> str:
    return "unknown" if nbytes is None else f"{nbytes / GIB:.1f} GiB"


def count(number: int | None) -> str:
    return "unknown" if number is None else str(number)


def amount(nbytes: int) -> str:
    return gib(nbytes) if nbytes >= GIB else f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def cache(c: dict[str, Any]) -> str:
    return f"L{c['level']}{'' if c['kind'] == 'unified' else ' ' + c['kind']} {amount(c['nbytes'])}"


def node(n: dict[str, Any]) -> str:
    return f"node {n['id']}: CPUs {ranges(n['cpus'])}" + (f", {gib(n['memory'])}" if n["memory"] else "")


def ranges(ids: list[int]) -> str:
    """(0, 1, 2, 5) as "0-2,5"."""
    parts: list[list[int]] = []
    for id in ids:
        if parts and parts[-1][-1] == id - 1:
            parts[-1][1:] = [id]
        else:
            parts.append([id])
    return ",".join("-".join(map(str, part)) for part in parts) or "none"
