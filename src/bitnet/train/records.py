"""Records of a data set on disk, one at a time: text files, JSON lines, and the Parquet and Arrow of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitnet.errors import FormatError, ParameterError

SUFFIXES = (".txt", ".jsonl", ".ndjson", ".parquet", ".arrow")  # of a folder's files; other JSON there describes them
BATCH = 1024  # records of a table read at a time
ARROW_FILE = b"ARROW1"  # how the file begins that can be read in any order; datasets write streams


def records(path: Path, separator: str) -> Iterator[Mapping[str, Any]]:
    """The records of a file, or of a folder's files in the order of their names.

    A text file gives {"text": document}, its documents parted by lines that are `separator`; empty: the whole is one.
    """
    if (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(each.name for each in path.iterdir() if each.is_dir()))
        raise ParameterError(f"{path} holds several splits: {splits}.", f"Name one of them, such as {path / 'train'}.")
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and not each.name.startswith("."))
        if not files:
            raise ParameterError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}.")
        for file in files:
            yield from records(file, separator)
        return
    if not path.is_file():
        raise ParameterError(f"There is no {path}.")
    if path.suffix in (".jsonl", ".ndjson", ".json"):
        yield from json_list(path) if first_letter(path) == "[" else json_lines(path)
    elif path.suffix in (".parquet", ".arrow"):
        yield from table(path)
    else:
        yield from ({"text": text} for text in texts(path, separator))


def texts(path: Path, separator: str) -> Iterator[str]:
    lines: list[str] = []
    for line in lines_of(path):
        if separator and line.strip() == separator:
            yield from stripped(lines)
            lines = []
        else:
            lines.append(line)
    yield from stripped(lines)


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text; FormatError where it is none."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line in file:
                if "\0" in line:
                    raise FormatError(f"{path} is no text: it holds zero bytes.", "Unpack or convert it to UTF-8.")
                yield line
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{path} is no UTF-8 text: {error.reason}.", "Unpack it, or convert it: iconv -f WHAT_IT_IS -t utf-8"
        ) from error


def stripped(lines: list[str]) -> Iterator[str]:
    text = "".join(lines).strip()
    if text:
        yield text


def first_letter(path: Path) -> str:
    return next((line.strip()[0] for line in lines_of(path) if line.strip()), "")


def json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines_of(path), 1):
        if line.strip():
            yield json_object(parsed(line, f"{path}, line {number}"), f"{path}, line {number}")


def json_list(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, record in enumerate(parsed("".join(lines_of(path)), str(path)), 1):
        yield json_object(record, f"{path}, record {number}")


def parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is no JSON: {error}.", "Each line is an object, or the whole a list.") from error


def json_object(record: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise FormatError(f"{what} is no JSON object.")
    return record


def table(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a Parquet file, of the Arrow stream that `datasets.save_to_disk` writes, or of an Arrow file."""
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
            with pyarrow.memory_map(str(path)) as file:
                for batch in arrow_batches(pyarrow, file):
                    yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise FormatError(f"{path} is damaged: {error}.") from error


def arrow_batches(pyarrow: Any, file: Any) -> Iterator[Any]:
    if file.read_at(len(ARROW_FILE), 0) != ARROW_FILE:
        yield from pyarrow.ipc.open_stream(file)
        return
    found = pyarrow.ipc.open_file(file)
    for number in range(found.num_record_batches):
        yield found.get_batch(number)
