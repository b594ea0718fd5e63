"""An inspection as tables for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bitnet.cli.text import printable

LONGEST = 100  # characters of a metadata value


class Pipeable(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for main() to end quietly; the library would exit with 1


def pipeable() -> Console:
    """For stdout; into a pipe without colours, and wide enough that nothing is cut."""
    return Pipeable(width=None if sys.stdout.isatty() else 200, highlight=False, emoji=False, markup=False)


def show(found: dict[str, Any], tensors: bool) -> None:
    console = pipeable()
    console.print(table("Metadata", ("key", "value"), [(k, brief(v)) for k, v in found["metadata"].items()]))
    if tensors:
        rows = [(t["name"], sizes(t["shape"]), t["type"], f"{t['bytes']:,}") for t in found["tensors"]]
        console.print(table("Tensors", ("name", "shape", "type", "bytes"), rows))
    console.print(
        table("Types", ("type", "tensors", "weights", "bytes", "bits per weight"), map(totals, found["types"]))
    )
    for name, value in facts(found):
        console.print(Text(f"{name:<16} {printable(value)}"), soft_wrap=True)


def totals(row: dict[str, Any]) -> tuple[str, ...]:
    return row["type"], f"{row['tensors']:,}", f"{row['weights']:,}", f"{row['bytes']:,}", f"{row['bits']:.3f}"


def facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [
        ("file", found["path"]),
        ("architecture", f"{found['architecture']} ({found['kind']})"),
        ("runs here", found["runs"]),
        ("parameters", f"{found['parameters']:,}"),
        ("bytes", f"{found['bytes']:,} ({found['bytes'] / 2**20:,.1f} MiB)"),
        ("bits per weight", f"{found['bits_per_weight']:.3f}"),
    ]
    if "histogram" in found:
        shares = "   ".join(f"{code}: {100 * share:.2f} %" for code, share in found["histogram"].items())
        lines.append(("ternary weights", shares or "none"))
    return lines + [("sha256", f"{digest}  {name}") for name, digest in found.get("sha256", {}).items()]


def table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    numbers = ("tensors", "weights", "bytes", "bits per weight")
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def brief(value: Any) -> str:
    if isinstance(value, dict) and value.keys() == {"length", "first"}:
        return brief(value["first"])[:-1] + f", ...] ({value['length']:,} entries)"
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
