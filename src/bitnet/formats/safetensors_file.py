"""One safetensors file: where each tensor lies, checked before it is believed.

Source: https://github.com/huggingface/safetensors#format. The library hands BF16 to torch only, and a model is opened
here without torch; tests/formats compare this reader with the library on everything that both can read.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.bounded_json import parse_object
from bitnet.formats.source import SourceFile

MAX_HEADER = 100_000_000  # bytes, as in the library
MAX_NAME = 1024  # characters of a tensor name
DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1"}
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
SIZES = _SIZES | {name: np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # from the start of the file
    nbytes: int


class SafetensorsFile:
    """`entries` lists the tensors in the order of their bytes; `read` gives one as stored (BF16 as uint16)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._source = SourceFile(path)
        try:
            self.entries = _entries(self._source)
        except BaseException:
            self._source.close()
            raise

    def read(self, name: str) -> NDArray[Any]:
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise UnsupportedError(f"{self.path}: {name} is {entry.dtype}; supported are {', '.join(DTYPES)}.")
        return self._source.read(entry.start, entry.nbytes).view(DTYPES[entry.dtype]).reshape(entry.shape)

    def read_rows(self, name: str, first: int, last: int) -> NDArray[Any]:
        """Rows `first` to `last` (not included) of a matrix."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise UnsupportedError(f"{self.path}: {name} is {entry.dtype}; supported are {', '.join(DTYPES)}.")
        row = entry.shape[1] * SIZES[entry.dtype]
        data = self._source.read(entry.start + first * row, (last - first) * row)
        return data.view(DTYPES[entry.dtype]).reshape(last - first, entry.shape[1])

    def fileno(self) -> int:
        return self._source.fileno()

    def close(self) -> None:
        self._source.close()


def _entries(source: SourceFile) -> dict[str, Entry]:
    if source.size < 8:
        raise FormatError(f"{source.path} has {source.size} bytes; a safetensors file has at least 8.")
    length = int(source.read(0, 8).view("<u8")[0])
    if length > min(MAX_HEADER, source.size - 8):
        raise FormatError(
            f"{source.path}: the header claims {length:,} bytes; the file has {source.size:,}, "
            f"and {MAX_HEADER:,} is the limit."
        )
    header = parse_object(source.read(8, length).tobytes(), f"the header of {source.path}")
    header.pop("__metadata__", None)
    found = [_entry(source, name, value, 8 + length) for name, value in header.items()]
    found.sort(key=lambda entry: (entry.start, entry.nbytes))
    free = 8 + length
    for entry in found:
        if entry.start != free:
            how = "overlaps the one before" if entry.start < free else "leaves a hole before it"
            raise FormatError(f"{source.path}: {entry.name} at byte {entry.start:,} {how}; {free:,} was expected.")
        free += entry.nbytes
    if free != source.size:
        raise FormatError(
            f"{source.path} has {source.size:,} bytes; its tensors end at byte {free:,}.",
            "The file is cut short or damaged; download it again." if free > source.size else "",
        )
    return {entry.name: entry for entry in found}


def _entry(source: SourceFile, name: str, value: Any, base: int) -> Entry:
    """Check one line of the header: {"dtype": "F16", "shape": [n, k], "data_offsets": [from, to]}."""
    if not name.isprintable() or len(name) > MAX_NAME:
        raise FormatError(f"{source.path}: the tensor name {name!r:.100} is long or holds control characters.")
    if not isinstance(value, dict):
        raise FormatError(f"{source.path}: {name} is described by {value!r}; an object was expected.")
    dtype: Any = value.get("dtype")
    shape: Any = value.get("shape")
    offsets: Any = value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise UnsupportedError(f"{source.path}: {name} has the type {dtype!r}; supported are {', '.join(DTYPES)}.")
    if not _naturals(shape) or len(shape) > 8 or not _naturals(offsets) or len(offsets) != 2:
        raise FormatError(f"{source.path}: {name} has the shape {shape!r:.200} and the offsets {offsets!r:.200}.")
    start, end = offsets
    if end - start != prod(shape) * SIZES[dtype] or base + end > source.size:
        raise FormatError(
            f"{source.path}: {name} is {dtype} {tuple(shape)}, {prod(shape) * SIZES[dtype]:,} bytes, "
            f"and lies from {start:,} to {end:,} of {source.size - base:,}."
        )
    return Entry(name, dtype, tuple(shape), base + start, end - start)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)
