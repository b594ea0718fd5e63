"""Rows of JSON as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rich.table import Table
from rich.text import Text

from bitnet.cli.inspection_tables import Pipeable
from bitnet.cli.text import printable

Line = Callable[[dict[str, Any]], Iterable[str]]
NUMBERS = ("size", "parameters", "bytes")


def print_rows(shape: tuple[tuple[str, ...], Line], rows: list[dict[str, Any]], empty: str = "") -> None:
    """Into a pipe wide enough that nothing is cut."""
    import sys

    titles, line = shape
    console = Pipeable(width=None if sys.stdout.isatty() else 200, highlight=False, emoji=False, markup=False)
    if not rows:
        console.print(empty)
        return
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right" if title in NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in line(row)))
    console.print(table)
