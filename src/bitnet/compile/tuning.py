"""Which way of computing each product is the fastest here: a measured search that is kept, resumed and used again."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import tvm

import bitnet._core as _core
from bitnet.errors import FormatError, ParameterError
from bitnet.formats.atomic import replacing
from bitnet.formats.bounded_json import parse_object
from bitnet.machine.folders import cache_folder
from bitnet.tensorir.targets import Target, runs_here
from bitnet.tensorir.ternary import Blocking, Shape

OPERATOR_SECONDS, MODEL_SECONDS = 300.0, 600.0
NATIVE = "native"
GENERATION = 2  # of the code that tensorir/ternary.py writes: older measurements say nothing of it
Doing = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Operator:
    """A ternary product for one token (1) or for several (None)."""

    shape: Shape
    count: int | None

    def __str__(self) -> str:
        tokens = "one token" if self.count == 1 else "several tokens"
        scales = f", groups of {self.shape.group}" if self.shape.group else ", a scale a row" * self.shape.per_row
        return f"{self.shape.n} x {self.shape.k}{scales}, {tokens}"


@dataclass(slots=True)
class Record:
    """What is known of an operator. seconds: of each way that was tried, by its name; None: it failed. best: the
    fastest way, timed again beside the core's kernel. note: why the core's kernel stands in."""

    seconds: dict[str, float | None] = field(default_factory=dict)
    best: str = ""
    again: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def blocking(self) -> Blocking | None:
        """Of the best way; None: the core's kernel."""
        return None if self.best in ("", NATIVE) else Blocking(**json.loads(self.best))

    @property
    def fastest(self) -> Blocking | None:
        """As `blocking`, the core's kernel left aside; None: no other way works."""
        tried = {way: s for way, s in self.seconds.items() if s is not None and way != NATIVE}
        return Blocking(**json.loads(min(tried, key=tried.__getitem__))) if tried else None

    def said(self, auto: bool) -> str:
        """Which way it is, and how fast beside the other."""
        way = self.blocking if auto else self.fastest
        name = NATIVE if way is None else f"tvm {astuple(way)}"
        times = ", ".join(
            f"{'native' if each == NATIVE else 'tvm'} {1e6 * s:.1f} us" for each, s in sorted(self.again.items())
        )
        return name + (f" ({times})" if times else "") + (f"; {self.note}" if self.note else "")


class Database:
    """Records by operator, target, TVM, CPU and threads, in a file of JSON that is whole at any time."""

    def __init__(self, path: Path) -> None:
        self.path, self.records = path, dict[str, Record]()
        if path.exists():
            try:
                found = parse_object(path.read_bytes(), str(path))
                self.records = {key: Record(**value) for key, value in found.items()}
            except (FormatError, TypeError, OSError) as error:
                raise FormatError(f"The tuning database {path} cannot be read: {error}", "Delete it.") from None

    def record(self, key: str) -> Record:
        return self.records.setdefault(key, Record())

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            file.write(json.dumps({key: asdict(record) for key, record in self.records.items()}, indent=1).encode())


def usual_database() -> Path:
    return cache_folder() / "tvm-tuning.json"


def key_of(operator: Operator, target: Target, threads: int) -> str:
    """Everything that a measurement depends on."""
    features = ",".join(name for name, present in _core.cpu_features().items() if present)
    shape = json.dumps(asdict(operator.shape), sort_keys=True)
    machine = f"{target.name} tvm-{tvm.__version__} {features} {threads} threads"
    return f"ternary {GENERATION} {shape} {operator.count} {machine}"


def name_of(way: Blocking) -> str:
    return json.dumps(asdict(way), sort_keys=True)


def candidates(operator: Operator, schedule: str) -> Iterator[Blocking]:
    """Ways to try, the likeliest first: rows and tokens at once that the registers hold, unrolling, prefetching."""
    wide = schedule == "avx512_vnni"
    tiles = [(1, 1), (2, 1), (4, 1)] if operator.count == 1 else [(1, 4), (1, 8), (2, 4), (2, 2), (1, 2), (4, 4)]
    if not wide:
        tiles = [(g, m) for g, m in tiles if g * m <= 4]
    chunks = (8, 32) if operator.count == 1 else (4, 16)
    seen = set[Blocking]()
    for chunk, ahead, unroll in product(chunks, (1024, 4096, 0), (2, 4, 1)):
        for groups, tokens in tiles:
            way = Blocking(groups, tokens, unroll, ahead, chunk).fitted(operator.shape, operator.count)
            if way not in seen:
                seen.add(way)
                yield way


def tune(
    operators: Sequence[Operator],
    target: Target,
    database: Database,
    most: int,
    doing: Doing = lambda what: None,
    operator_seconds: float = OPERATOR_SECONDS,
    model_seconds: float = MODEL_SECONDS,
) -> dict[Operator, Record]:
    """The best of `most` ways and the core's kernel for every operator. What the database knows is not measured again.

    An operator whose time is over, or none of whose ways works, has the core's kernel, and a note that says why.
    """
    if not runs_here(target):
        raise ParameterError(f"{target.name} cannot be measured on this machine.", "Tune for --target host.")
    ends, found = time.monotonic() + model_seconds, dict[Operator, Record]()
    for i, operator in enumerate(operators):
        record = found[operator] = database.record(key_of(operator, target, _core.threads()))
        left = min(operator_seconds, ends - time.monotonic())
        ways = [name_of(way) for way, _ in zip(candidates(operator, target.schedule), range(max(1, most)))]
        settle(record, operator, target, ways, left, partial(told, doing, f"tuning {i + 1} of {len(operators)}"))
        database.save()
    return found


def told(doing: Doing, where: str, what: str) -> None:
    doing(f"{where}: {what}")


def settle(record: Record, operator: Operator, target: Target, ways: list[str], left: float, doing: Doing) -> None:
    """Measure what is not known yet, and decide."""
    ends = time.monotonic() + left
    untried = [way for way in (NATIVE, *ways) if way not in record.seconds]
    if not untried and record.best:
        return
    over = False
    while untried and not over:
        doing(f"{operator}: {len(untried)} ways left")
        found, over = measured(operator, target, untried, ends - time.monotonic())
        if not over and len(found) < len(untried):
            found = [*found, None]  # the process died of the next one
        record.seconds |= dict(zip(untried, found))
        untried = untried[len(found) :]
    exact = {way: s for way, s in record.seconds.items() if s is not None and way != NATIVE}
    if not exact:
        record.best = NATIVE
        record.note = "its time was over" if over else "no way worked"
        return
    best = min(exact, key=exact.__getitem__)
    again, _ = measured(operator, target, [best, NATIVE, best, NATIVE], max(5.0, ends - time.monotonic()))
    if len(again) < 4 or None in again:
        record.best, record.note = NATIVE, "the fastest way failed when it was timed again"
        return
    times = [s for s in again if s is not None]
    record.again = {best: min(times[::2]), NATIVE: min(times[1::2])}
    record.best = best if record.again[best] < record.again[NATIVE] else NATIVE
    record.note = "its time was over: not all ways were tried" if over else ""


def measured(operator: Operator, target: Target, ways: Sequence[str], left: float) -> tuple[list[float | None], bool]:
    """Seconds of the ways, in order, None for one that is not exact; fewer where the process died. Whether time was
    over."""
    job = {
        "target": target.name,
        "shape": asdict(operator.shape),
        "count": operator.count,
        "threads": _core.threads(),
        "ways": [None if way == NATIVE else json.loads(way) for way in ways],
    }
    if left <= 0:
        return [], True
    command = [sys.executable, "-m", "bitnet.compile.candidate"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin and process.stdout
    timer = threading.Timer(left, process.kill)
    timer.start()
    found: list[float | None] = []
    try:
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
        for line in process.stdout:
            found.append(seconds_of(line))
    except BrokenPipeError:
        pass  # it died before it read its job
    finally:
        over = not timer.is_alive()
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
    return found, over


def seconds_of(line: bytes) -> float | None:
    try:
        found: Mapping[str, Any] = json.loads(line)
    except ValueError:
        return None
    seconds = found.get("seconds")
    return float(seconds) if isinstance(seconds, float | int) else None
