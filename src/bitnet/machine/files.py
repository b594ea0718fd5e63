"""Small files in which the kernel tells about the machine. What is not there, or not readable, is None."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return None


def number(path: Path) -> int | None:
    try:
        return int(text(path) or "")
    except ValueError:  # "max", or nothing
        return None


def numbered(folder: Path, name: str) -> Iterator[tuple[int, Path]]:
    """The entries of `folder` called `name` and a number, in the order of their numbers."""
    try:
        found = [(re.fullmatch(rf"{name}(\d+)", each.name), each) for each in folder.iterdir()]
    except OSError:
        found = []
    return iter(sorted((int(match[1]), each) for match, each in found if match))


def id_list(given: str | None) -> tuple[int, ...]:
    """ "0-2,8" as (0, 1, 2, 8); empty where it cannot be read."""
    ids: list[int] = []
    for part in (given or "").split(","):
        match = re.fullmatch(r"\s*(\d{1,7})(?:-(\d{1,7}))?\s*", part)
        if match:
            ids += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(ids)


def fields(path: Path) -> dict[str, str]:
    """The first value of every `name: value` line."""
    found: dict[str, str] = {}
    for line in (text(path) or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            found.setdefault(name.strip(), value.strip())
    return found
