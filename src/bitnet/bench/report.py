"""Results as Markdown, JSON, JSON lines or CSV, and read back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from bitnet.bench.results import Result
from bitnet.bench.tables import markdown
from bitnet.errors import ParameterError


class Told(Protocol):
    def to_json(self) -> dict[str, Any]: ...


def as_json(results: Iterable[Told]) -> Iterator[str]:
    yield json.dumps([result.to_json() for result in results], indent=2)


def json_lines(results: Iterable[Told]) -> Iterator[str]:
    for result in results:
        yield json.dumps(result.to_json())


def comma_separated(results: Iterable[Result]) -> Iterator[str]:
    """Without the samples, as llama-bench does, and without what else is no single value."""
    for i, result in enumerate(results):
        fields = {name: value for name, value in result.to_json().items() if not isinstance(value, list | dict)}
        if i == 0:
            yield record(fields)
        yield record(fields.values())


def record(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(["" if value is None else value for value in values])
    return text.getvalue()


def read(path: Path) -> list[Result]:
    """What `as_json` or `json_lines` wrote; ParameterError where it is something else."""
    try:
        text = path.read_text()
        found = json.loads(text) if text.lstrip().startswith("[") else [json.loads(each) for each in text.splitlines()]
    except OSError as error:
        raise ParameterError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{path} holds no results: {error}.", "Write some: bitnet bench -o json") from error
    if not found:
        raise ParameterError(f"{path} holds no results.", "Write some: bitnet bench -o json")
    return [Result.from_json(each) for each in found]


FORMATS = {"md": markdown, "json": as_json, "jsonl": json_lines, "csv": comma_separated}
