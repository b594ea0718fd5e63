"""Compiled models: a shared library (ELF) whose section `.bitnet` says what it is, in JSON.

Opening one reads that section and runs nothing of the library.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.bounded_json import parse_object
from bitnet.formats.checkpoint import Checkpoint, TensorInfo
from bitnet.formats.source import SourceFile
from bitnet.quant.tensor import Tensor

SECTION = ".bitnet"
VERSION = 3  # of the manifest, and of what a library's functions take
MOST_BYTES = 256 << 20  # of a manifest: vocabularies are large
MOST_MARKS = 1 << 24
MOST_SECTIONS = 1 << 16


class CompiledFile(Checkpoint):
    """manifest: what `bitnet compile` wrote about the model and what runs it. Tensors are known, but cannot be read."""

    kind = "gguf"

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.architecture, self.metadata = str(manifest["architecture"]), manifest["metadata"]

    @property
    def compile_s(self) -> float | None:
        """Seconds that making the library took, up to linking."""
        seconds = self.manifest.get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else None

    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(name, tuple(shape), dtype, nbytes)
            for name, (shape, dtype, nbytes) in self.manifest["tensors"].items()
        }

    def read(self, name: str) -> Tensor:
        raise UnsupportedError(
            f"{self.path} is compiled: its weights cannot be read.", "Use the file it was made from."
        )


def sniff(head: bytes) -> bool:
    return head.startswith(b"\x7fELF")


def open(path: Path) -> CompiledFile:
    """Raises FormatError where it is no library that `bitnet compile` made."""
    source = SourceFile(path)
    try:
        offset, nbytes = find_section(source, SECTION)
        if nbytes > MOST_BYTES:
            raise FormatError(f"{path} has a manifest of {nbytes:,} bytes; at most {MOST_BYTES:,} are read.")
        manifest = parse_object(source.read(offset, nbytes).tobytes(), f"The manifest of {path}", MOST_MARKS)
    finally:
        source.close()
    if manifest.get("version") != VERSION:
        raise UnsupportedError(
            f"{path} has a manifest of version {manifest.get('version')!r:.20}; this bitnet reads {VERSION}.",
            "Compile the model again.",
        )
    for key, kind in (("architecture", str), ("metadata", dict), ("tensors", dict), ("target", dict), ("model", dict)):
        if not isinstance(manifest.get(key), kind):
            raise FormatError(f"The manifest of {path} has no {key}.", "Compile the model again.")
    return CompiledFile(path, manifest)


def find_section(source: SourceFile, name: str) -> tuple[int, int]:
    """Offset and size of a section of a 64-bit little-endian ELF file (System V ABI, chapter 4)."""
    header = source.read(0, min(64, source.size)).tobytes()
    if len(header) < 64 or header[4:6] != b"\x02\x01":
        raise not_compiled(source.path)
    (table,) = struct.unpack_from("<Q", header, 0x28)
    size, count, names = struct.unpack_from("<HHH", header, 0x3A)
    if size != 64 or not 0 < names < count <= MOST_SECTIONS:
        raise not_compiled(source.path)
    sections = source.read(table, size * count).tobytes()
    entries = [struct.unpack_from("<IIQQQQ", sections, size * i) for i in range(count)]
    strings = source.read(entries[names][4], min(entries[names][5], 1 << 20)).tobytes()
    for start, _, _, _, offset, nbytes in entries:
        if strings[start : strings.find(b"\0", start)] == name.encode():
            return offset, nbytes
    raise not_compiled(source.path)


def not_compiled(path: Path) -> FormatError:
    return FormatError(f"{path} is a library or program that `bitnet compile` did not make.")
