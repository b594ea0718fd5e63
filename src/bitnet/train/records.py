"""Records of a data set on disk, one at a time: text files, JSON lines, and the Parquet and Arrow of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitnet.errors import FormatError, ParameterError

SUFFIXES = (".txt", ".jsonl", ".parquet", ".arrow")
BATCH = 1024  # records of a table read at a time


def records(path: Path, separator: str) -> Iterator[Mapping[str, Any]]:
    """The records of a file, or of a folder's files in the order of their names.

    A text file gives {"text": document}, its documents parted by lines that are `separator`; empty: the whole is one.
    """
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and not each.name.startswith("."))
        if not files:
            raise ParameterError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}.")
        for file in files:
            yield from records(file, separator)
        return
    if not path.is_file():
        raise ParameterError(f"There is no {path}.")
    if path.suffix == ".jsonl":
        yield from json_lines(path)
    elif path.suffix in (".parquet", ".arrow"):
        yield from table(path)
    else:
        yield from ({"text": text} for text in texts(path, separator))


def texts(path: Path, separator: str) -> Iterator[str]:
    lines: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if separator and line.strip() == separator:
                yield from stripped(lines)
                lines = []
            else:
                lines.append(line)
    yield from stripped(lines)


def stripped(lines: list[str]) -> Iterator[str]:
    text = "".join(lines).strip()
    if text:
        yield text


def json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{path}, line {number} is no JSON: {error}.") from error
            if not isinstance(record, dict):
                raise FormatError(f"{path}, line {number} is no JSON object.")
            yield record


def table(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a Parquet file, or of the Arrow stream that `datasets.save_to_disk` writes."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ParameterError(f"{path} is read by pyarrow, which is missing.", "pip install pyarrow") from error
    try:
        if path.suffix == ".parquet":
            for batch in pyarrow.parquet.ParquetFile(path).iter_batches(BATCH):
                yield from batch.to_pylist()
        else:
            with pyarrow.memory_map(str(path)) as file, arrow_reader(pyarrow, file) as batches:
                for batch in batches:
                    yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise FormatError(f"{path} is damaged: {error}.") from error


def arrow_reader(pyarrow: Any, file: Any) -> Any:
    return pyarrow.ipc.open_stream(file)
