"""Reading GGUF files (versions 2 and 3): a validated table of tensors, decoded one at a time.

Types are recognised by their number and by the bytes that lie between one tensor and the next, because the numbers
36, 38, 39, 42, 142 and 143 mean different things to different programs. What does not add up is refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, ShapeError, UnsupportedError
from bitnet.formats.checkpoint import Checkpoint, TensorInfo
from bitnet.formats.gguf_codecs import decode, scale_place
from bitnet.formats.gguf_header import MAGIC, Header, RawTensor, padded, read_header
from bitnet.formats.gguf_types import BY_ID, BY_NAME, OTHER_MEANINGS, READABLE, TERNARY, GGUFType
from bitnet.formats.source import SourceFile
from bitnet.quant.stored import StoredTensor
from bitnet.quant.tensor import Tensor


def sniff(head: bytes) -> bool:
    """Whether a file that begins so is a GGUF file, of any version and byte order."""
    return head.startswith(MAGIC)


def open(path: Path) -> GGUFCheckpoint:
    """Open the GGUF file at `path`."""
    source = SourceFile(path)
    try:
        header = read_header(source)
        architecture = _architecture(source, header)
        return GGUFCheckpoint(source, header, architecture, _place(source, header))
    except BaseException:
        source.close()
        raise


@dataclass(frozen=True, slots=True)
class _Placed:
    info: TensorInfo
    start: int  # from the start of the file


class GGUFCheckpoint(Checkpoint):
    """A GGUF file. `alignment` and `version` are the header's."""

    kind = "gguf"

    def __init__(self, source: SourceFile, header: Header, architecture: str, placed: dict[str, _Placed]) -> None:
        self.path = source.path
        self.version, self.alignment = header.version, header.alignment
        self.metadata = MappingProxyType(header.metadata)
        self.architecture = architecture
        self._source, self._placed = source, placed
        self._tensors = {name: each.info for name, each in placed.items()}

    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> Tensor:
        info, start = self._readable(name), self._placed[name].start
        return self._decoded(info, info.shape, self._source.read(start, info.nbytes + BY_NAME[info.dtype].behind))

    def row_step(self, name: str) -> int:
        info = self._readable(name)
        return BY_NAME[info.dtype].row_step(info.shape)

    def read_rows(self, name: str, rows: slice) -> Tensor:
        info, kind = self._readable(name), BY_NAME[self._tensors[name].dtype]
        first, last, _ = rows.indices(info.shape[0])
        if len(info.shape) != 2 or any(row % kind.row_step(info.shape) for row in (first, last) if row < info.shape[0]):
            return super().read_rows(name, rows)
        shape, trailer = (last - first, info.shape[1]), kind.trailer + kind.behind
        before = kind.size((first, info.shape[1])) - kind.trailer
        start = self._placed[name].start
        data = self._source.read(start + before, kind.size(shape) - kind.trailer)
        if trailer:
            end = self._source.read(start + info.nbytes - kind.trailer, trailer)
            data = np.concatenate([data, end])
        return self._decoded(info, shape, data)

    def _readable(self, name: str) -> TensorInfo:
        """What is known of a tensor that exists and has a type that is decoded."""
        if name not in self._placed:
            raise ShapeError(f"{self.path} has no tensor {name}.")
        info = self._tensors[name]
        if info.dtype not in READABLE:
            raise UnsupportedError(
                f"{self.path}: {name} is {info.dtype}; supported are {', '.join(READABLE)}.",
                "Convert the model again with one of these types.",
            )
        return info

    def _decoded(self, info: TensorInfo, shape: tuple[int, ...], data: NDArray[np.uint8]) -> Tensor:
        try:
            return decode(data, shape, info.dtype)
        except (FormatError, UnsupportedError) as error:
            raise type(error)(f"{self.path}: {info.name} {error.message}", error.hint) from error

    def stored(self, name: str) -> StoredTensor | None:
        info, start = self._placed[name].info, self._placed[name].start
        if len(info.shape) != 2:
            return None
        scale, place = None, scale_place(info.shape, info.dtype)
        if place is not None:
            at, dtype = place
            scale = float(self._source.read(start + at, np.dtype(dtype).itemsize).view(dtype)[0])
            if not np.isfinite(scale):
                return None
        n, k = info.shape
        return StoredTensor(self._source.fileno(), start, info.nbytes, info.dtype, (n, k), scale)

    def close(self) -> None:
        self._source.close()


def _architecture(source: SourceFile, header: Header) -> str:
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise UnsupportedError(
            f"{source.path} is one part of {header.metadata['split.count']!r:.100}.",
            "Join the parts first: llama-gguf-split --merge FIRST-PART OUTPUT.",
        )
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise FormatError(f"{source.path}: general.architecture is {architecture!r:.100}; a name was expected.")
    return architecture


def _place(source: SourceFile, header: Header) -> dict[str, _Placed]:
    """Type, size and place of every tensor; they lie inside the file, aligned, and do not overlap."""
    placed, type_42 = {}, _type_42(source, header)
    for raw in header.tensors:
        kind = type_42 if raw.type_id == type_42.id else _type(source, raw)
        info = TensorInfo(raw.name, raw.shape, kind.name, _size(source, raw, kind))
        placed[raw.name] = _Placed(info, header.data_start + raw.offset)
    in_order = sorted(placed.values(), key=lambda each: each.start)
    _check_places(source, header, in_order)
    _check_rooms(source, header, in_order)
    return placed


def _type_42(source: SourceFile, header: Header) -> GGUFType:
    """Q2_0; but what PrismML's programs wrote under this number before llama.cpp took it is PQ2_0. The sizes tell."""
    starts = sorted(raw.offset for raw in header.tensors)
    end = dict(pairwise([*starts, source.size - header.data_start]))
    found = [raw for raw in header.tensors if raw.type_id == BY_NAME["Q2_0"].id]

    def fits(kind: GGUFType, raw: RawTensor) -> bool:
        size = kind.size(raw.shape)
        return kind.divides(raw.shape) and size <= end[raw.offset] - raw.offset <= padded(size, header.alignment)

    kinds = [kind for kind in (BY_NAME["Q2_0"], BY_NAME["PQ2_0"]) if all(fits(kind, raw) for raw in found)]
    return replace(kinds[0] if kinds else BY_NAME["Q2_0"], id=BY_NAME["Q2_0"].id)


def _type(source: SourceFile, raw: RawTensor) -> GGUFType:
    if raw.type_id in BY_ID:
        return BY_ID[raw.type_id]
    raise UnsupportedError(
        f"{source.path}: {raw.name} has the tensor type {raw.type_id}; supported are {', '.join(READABLE)}.",
        "Convert the model again from its Hugging Face folder.",
    )


def _size(source: SourceFile, raw: RawTensor, kind: GGUFType) -> int:
    if not kind.divides(raw.shape):
        raise FormatError(f"{source.path}: {raw.name} is {raw.shape} in {kind.name}, which takes {kind.rule}.")
    return kind.size(raw.shape)


def _check_places(source: SourceFile, header: Header, in_order: list[_Placed]) -> None:
    free, before = header.data_start, ""
    for each in in_order:
        name, end = each.info.name, each.start + each.info.nbytes
        if each.start % header.alignment:
            raise FormatError(f"{source.path}: {name} is at byte {each.start:,}, not a multiple of {header.alignment}.")
        if end > source.size:
            raise FormatError(
                f"{source.path}: {name} ends at byte {end:,}, and the file at {source.size:,}.",
                "The file is cut short; download it again.",
            )
        if each.start < free:
            raise FormatError(
                f"{source.path}: {name} at byte {each.start:,} overlaps {before}, which ends at {free:,}."
            )
        free, before = end, name


def _check_rooms(source: SourceFile, header: Header, in_order: list[_Placed]) -> None:
    """A ternary tensor fills its place up to the next one; what another program means by its number takes more."""
    for each, following in pairwise(in_order):
        room, kind = following.start - each.start, BY_NAME[each.info.dtype]
        takes = padded(padded(each.info.nbytes, 32) + kind.behind, header.alignment)
        if each.info.dtype in TERNARY and room > takes:
            raise UnsupportedError(
                f"{source.path}: {each.info.name} has the tensor type {kind.id} and {room:,} bytes; {each.info.dtype} "
                f"takes {each.info.nbytes:,}.",
                OTHER_MEANINGS.get(kind.id, "Another program may mean another type by this number."),
            )
