"""`bitnet list`: the models in the cache, or those that have short names."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bitnet.cli.options import AsJson

DAY = 86400


def command(
    known: Annotated[bool, typer.Option("--known", help="List models that can be fetched by a short name.")] = False,
    as_json: AsJson = False,
) -> None:
    rows = known_models() if known else cached_models()
    if as_json:
        print(json.dumps(rows))
        return
    from bitnet.cli.tables import print_rows

    print_rows(KNOWN if known else CACHED, rows, "" if known else NONE)


def cached_models() -> list[dict[str, Any]]:
    """Those that this program has a reader for; "runs" says whether their architecture is supported."""
    from bitnet.cli.summary import summary
    from bitnet.hub import cache

    found = []
    for held in cache.held():
        about = {"name": str(held.name), "path": str(held.path), "bytes": held.nbytes, "last_used": held.last_used}
        found.append({**about, **summary(held.path)})
    return found


def known_models() -> list[dict[str, Any]]:
    from bitnet.hub import KNOWN, Name, cache

    rows = []
    for known in KNOWN:
        here = cache.find(Name(known.repo, known.quant))
        rows.append({**asdict(known), "path": None if here is None else str(here)})
    return rows


def cached_line(row: dict[str, Any]) -> Iterator[str]:
    from bitnet.hub.choice import amount

    yield row["name"]
    yield amount(row["bytes"])
    yield row["architecture"] or "?"
    yield row["weights"] or "?"
    yield row["runs"]
    yield ago(time.time() - row["last_used"])


def known_line(row: dict[str, Any]) -> Iterator[str]:
    from bitnet.hub.choice import amount
    from bitnet.hub.known import FOLDER

    yield row["name"]
    yield row["repo"] if row["quant"] in ("", FOLDER) else f"{row['repo']}:{row['quant']}"
    yield amount(row["nbytes"]) if row["nbytes"] else ""
    yield f"{row['parameters'] / 1e9:.2f}B" if row["parameters"] else ""
    yield row["about"]
    yield "yes" if row["verified"] else "no"
    yield "yes" if row["path"] else ""


def ago(seconds: float) -> str:
    for unit, length in (("day", DAY), ("hour", 3600), ("minute", 60)):
        count = int(seconds // length)
        if count:
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"


NONE = "There are no models in the cache. `bitnet list --known` shows what can be fetched."
CACHED = (("name", "size", "architecture", "weights", "runs", "last used"), cached_line)
KNOWN = (("name", "repository", "size", "parameters", "about", "verified", "here"), known_line)
