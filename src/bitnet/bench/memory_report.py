"""The parts of a process's memory as a table, or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from bitnet.bench.machine import isa
from bitnet.bench.memory import MemoryUse
from bitnet.bench.plot import counted
from bitnet.bench.report import as_json, json_lines
from bitnet.bench.tables import Row, table

COLUMNS = ("part", "MiB", "share", "how")


def markdown(results: Iterable[MemoryUse]) -> Iterator[str]:
    for found in results:
        yield from table(f"Memory: {found.model}, {found.test}, {counted(found.threads)}", COLUMNS, rows(found))
        yield ""
        if found.peak is not None:
            yield f"peak: {mebibytes(found.peak)} MiB resident at once, loading included"
        if found.reserved:
            yield f"reserved: {mebibytes(found.reserved)} MiB of addresses for keys and values; resident once written"
        if found.weights:
            yield f"ternary weights at {found.weights}, {isa(found.backend)}"


def rows(found: MemoryUse) -> Iterator[Row]:
    for part in found.parts:
        yield part.name, mebibytes(part.nbytes), share(part.nbytes, found), part.how
    yield "unexplained", mebibytes(found.unexplained), share(found.unexplained, found), "the rest"
    yield "resident", mebibytes(found.resident), share(found.resident, found), "measured"


def mebibytes(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f}"


def share(nbytes: int, found: MemoryUse) -> str:
    return f"{100 * nbytes / found.resident:.1f} %"


FORMATS = {"md": markdown, "json": as_json, "jsonl": json_lines}
