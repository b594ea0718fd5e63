"""docs/models.md: every cell of its tables names a test, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from bitnet.formats.gguf_types import READABLE

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", TEXT)))


def table(first: str) -> list[list[str]]:
    """The rows of the table whose head begins with `first`, without the head."""
    lines = TEXT.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[begin + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_is_named_exists(named: str) -> None:
    path, _, function = named.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert (function in functions) if function else any(name.startswith("test_") for name in functions)


def test_every_cell_names_a_test() -> None:
    keys = {row[0]: row[2] for row in table("key")}
    assert all("`tests/" in tests for tests in keys.values())
    cells = [cell for row in table("weights") for cell in row[1:]]
    used = {key for cell in cells for key in cell.removeprefix("refused: ").split(", ")}
    assert used == set(keys)


def test_every_type_has_a_row() -> None:
    rows = " ".join(row[0] for row in table("weights"))
    assert not [dtype for dtype in READABLE if not re.search(rf"\b{dtype}\b", rows)]
