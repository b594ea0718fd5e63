"""The header of a GGUF file: everything before the tensor data, checked before it is believed.

Source: ggml/docs/gguf.md. A count or a length is compared with the bytes that are left before anything is allocated
for it; the header is read in windows that grow with what it proves to hold.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.source import SourceFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEY = 65535  # bytes, by the specification
MAX_NAME = 1024  # bytes of a tensor name; llama.cpp has 64
MAX_HEADER = 1 << 26  # bytes: four times the largest vocabulary with its merges
MAX_ENTRIES = 1 << 16  # tensors, and keys
MAX_ARRAY = 1 << 22  # elements of all arrays together: three times those of the largest vocabulary
MAX_STRING = 1 << 24  # bytes of a metadata string
MAX_ALIGNMENT = 1 << 16
MAX_DIMS = 4
SMALLEST_PAIR, SMALLEST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8  # bytes of an entry with a name of one letter

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    BOOL: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as the header lists it; `shape` is row-major (the file stores the innermost dimension first)."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int  # from the start of the data


@dataclass(frozen=True, slots=True)
class Header:
    version: int
    metadata: dict[str, Any]
    tensors: list[RawTensor]
    alignment: int
    data_start: int  # from the start of the file


def read_header(source: SourceFile) -> Header:
    cursor = _Cursor(source)
    version = _version(cursor)
    tensor_count, pair_count = cursor.number("<u8", "the tensor count"), cursor.number("<u8", "the key count")
    cursor.expect(
        tensor_count * SMALLEST_TENSOR + pair_count * SMALLEST_PAIR, f"{tensor_count:,} tensors, {pair_count:,} keys"
    )
    if max(tensor_count, pair_count) > MAX_ENTRIES:
        raise cursor.error(f"{tensor_count:,} tensors and {pair_count:,} keys; at most {MAX_ENTRIES:,} are accepted")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.name(MAX_KEY, "a metadata key")
        if key in metadata:
            raise cursor.error(f"the key {key!r} occurs twice")
        metadata[key] = _value(cursor, key)
    alignment = _alignment(source, metadata)
    tensors = _tensors(cursor, tensor_count)
    return Header(version, metadata, tensors, alignment, padded(cursor.at, alignment))


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


class _Cursor:
    """Walks through the file from byte 0. `at` is the next byte; nothing past the end of the file is ever asked for."""

    def __init__(self, source: SourceFile) -> None:
        self.source, self.at = source, 0
        self.elements = 0  # of arrays so far
        self._window = b""

    def expect(self, nbytes: int, what: str) -> None:
        """Raise unless `nbytes` more bytes exist in the file."""
        left = self.source.size - self.at
        if nbytes > left:
            raise self.error(
                f"{what} would take {nbytes:,} bytes, and {left:,} are left; the file is cut short or damaged"
            )

    def take(self, nbytes: int, what: str) -> bytes:
        if self.at + nbytes > len(self._window):
            self._grow(nbytes, what)
        data = self._window[self.at : self.at + nbytes]
        self.at += nbytes
        return data

    def number(self, dtype: str, what: str) -> Any:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize, what), dtype)[0].item()

    def name(self, longest: int, what: str) -> str:
        """A string that names something: short, not empty, without control characters."""
        length = self.number("<u8", f"the length of {what}")
        if not 0 < length <= longest:
            raise self.error(f"{what} is {length:,} bytes long; 1 to {longest:,} were expected")
        text = self.decode(self.take(length, what), what)
        if not text.isprintable():
            raise self.error(f"{what} holds control characters: {text!r}")
        return text

    def string(self, what: str) -> str:
        length = self.number("<u8", f"the length of {what}")
        self.expect(length, what)
        if length > MAX_STRING:
            raise self.error(f"{what} is {length:,} bytes long; at most {MAX_STRING:,} are accepted")
        return self.decode(self.take(length, what), what)

    def strings(self, count: int, what: str) -> list[str]:
        """As `string`, `count` times: a vocabulary has 10^5 of them, so this loop does without the calls."""
        found, unpack = [], struct.Struct("<Q").unpack_from
        for index in range(count):
            if self.at + 8 > len(self._window):
                self._grow(8, what)
            start = self.at + 8
            (length,) = unpack(self._window, self.at)
            if start + length > len(self._window):
                self._grow(8 + length, f"{what}[{index}]")
            self.at = start + length
            try:
                found.append(self._window[start : self.at].decode())
            except UnicodeDecodeError as error:
                raise self.error(f"{what}[{index}] is not UTF-8: {error.reason}") from error
        return found

    def decode(self, data: bytes, what: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {error.reason}") from error

    def error(self, message: str) -> FormatError:
        return FormatError(f"{self.source.path}: at byte {self.at:,}: {message}.")

    def _grow(self, nbytes: int, what: str) -> None:
        self.expect(nbytes, what)
        if self.at + nbytes > MAX_HEADER:
            raise self.error(f"{what} would end at byte {self.at + nbytes:,}; headers of {MAX_HEADER:,} are accepted")
        size = max(2 * len(self._window), self.at + nbytes, 1 << 20)
        self._window = self.source.read(0, min(size, self.source.size, MAX_HEADER)).tobytes()


def _version(cursor: _Cursor) -> int:
    magic = cursor.take(4, "the magic number")
    if magic != MAGIC:
        raise cursor.error(f"the file begins with {magic!r}; a GGUF file begins with {MAGIC!r}")
    version: int = cursor.number("<u4", "the version")
    if version in VERSIONS:
        return version
    swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
    found = f"big-endian (version {swapped})" if swapped in (1, *VERSIONS) else f"version {version:,}"
    raise UnsupportedError(
        f"{cursor.source.path} is a GGUF file of {found}; little-endian versions 2 and 3 are supported.",
        "Convert the model again with a current converter.",
    )


def _value(cursor: _Cursor, key: str) -> Any:
    kind = cursor.number("<u4", f"the type of {key}")
    if kind == ARRAY:
        return _array(cursor, key)
    if kind == STRING:
        return cursor.string(key)
    if kind not in SCALARS:
        raise cursor.error(f"{key} has the value type {kind}; 0 to 12 were expected")
    value = cursor.number(SCALARS[kind], key)
    return _booleans(cursor, [value], key)[0] if kind == BOOL else value


def _array(cursor: _Cursor, key: str) -> list[Any]:
    kind, count = cursor.number("<u4", f"the element type of {key}"), cursor.number("<u8", f"the length of {key}")
    if kind == ARRAY:
        raise UnsupportedError(f"{cursor.source.path}: {key} is an array of arrays; only flat arrays are supported.")
    if kind != STRING and kind not in SCALARS:
        raise cursor.error(f"{key} has the element type {kind}; 0 to 12 were expected")
    cursor.elements += count
    if cursor.elements > MAX_ARRAY:
        raise cursor.error(f"{key} has {count:,} elements; at most {MAX_ARRAY:,} in all arrays are accepted")
    if kind == STRING:
        cursor.expect(8 * count, key)
        return cursor.strings(count, key)
    dtype = np.dtype(SCALARS[kind])
    values: list[Any] = np.frombuffer(cursor.take(count * dtype.itemsize, key), dtype).tolist()
    return _booleans(cursor, values, key) if kind == BOOL else values


def _booleans(cursor: _Cursor, values: list[int], key: str) -> list[bool]:
    if max(values, default=0) > 1:
        raise cursor.error(f"{key} holds the boolean {max(values)}; 0 and 1 were expected")
    return [bool(value) for value in values]


def _alignment(source: SourceFile, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise FormatError(
            f"{source.path}: general.alignment is {alignment!r:.100}; "
            f"a power of two from 8 to {MAX_ALIGNMENT:,} was expected."
        )
    return alignment


def _tensors(cursor: _Cursor, count: int) -> list[RawTensor]:
    found: dict[str, RawTensor] = {}
    for _ in range(count):
        name = cursor.name(MAX_NAME, "a tensor name")
        if name in found:
            raise cursor.error(f"the tensor {name} occurs twice")
        found[name] = RawTensor(name, *_extent(cursor, name))
    return list(found.values())


def _extent(cursor: _Cursor, name: str) -> tuple[tuple[int, ...], int, int]:
    """Shape, type number and offset of the tensor `name`."""
    dims = cursor.number("<u4", f"the number of dimensions of {name}")
    if not 1 <= dims <= MAX_DIMS:
        raise cursor.error(f"{name} has {dims:,} dimensions; 1 to {MAX_DIMS} were expected")
    inner_first = [cursor.number("<u8", f"the shape of {name}") for _ in range(dims)]
    if 0 in inner_first or prod(inner_first) >= 1 << 62:
        raise cursor.error(f"{name} has the dimensions {inner_first}; their product must be from 1 to 2^62")
    return (
        tuple(inner_first[::-1]),
        cursor.number("<u4", f"the type of {name}"),
        cursor.number("<u8", f"the offset of {name}"),
    )
