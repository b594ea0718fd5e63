"""Writing GGUF files (version 3), one tensor at a time, so that a model never has to fit into memory.

The header needs every shape and type before the first byte of data, so a tensor is announced by a TensorSpec and its
values are asked for when their turn comes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ParameterError
from bitnet.formats.ahead import in_order
from bitnet.formats.atomic import replacing
from bitnet.formats.gguf_codecs import encode
from bitnet.formats.gguf_header import ARRAY, BOOL, MAGIC, SCALARS, STRING, padded
from bitnet.formats.gguf_types import BY_NAME, WRITABLE, GGUFType
from bitnet.quant.blocks import BLOCKS
from bitnet.quant.tensor import Tensor, TernaryTensor

# By use and `flat`: what takes a shape that a type does not.
LOOSER = {
    ("float", False): "F16, BF16 and F32 take rows of any length.",
    ("ternary", False): "I2_S takes rows of any length, if all together are a multiple of 128 weights.",
}

Block = Callable[[], Tensor]
Bytes = NDArray[np.uint8]
Progress = Callable[[int, int], None]
VERSION, ALIGNMENT = 3, 32
_NUMPY = {np.dtype(dtype): number for number, dtype in SCALARS.items() if number != BOOL} | {np.dtype(bool): BOOL}
_NATIVE = {bool: "?", float: "<f4"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to write: its name, its row-major shape, the type it is stored in, and where its values come from.

    blocks: called when the tensor's turn comes; gives a call for each block of its rows, in order. These calls are made
    by several threads, a few blocks ahead of what is written.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    blocks: Callable[[], Iterable[Block]]

    @classmethod
    def of(cls, name: str, tensor: Tensor, dtype: str) -> TensorSpec:
        """For a tensor that is in memory already."""
        return cls(name, tensor.shape, dtype, lambda: [lambda: tensor])


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Any],
    tensors: Iterable[TensorSpec],
    progress: Progress = lambda done, total: None,
) -> None:
    """Write the model file `path`, whole or not at all.

    metadata: a value gets the type llama.cpp reads: a bool; an int as uint32 (int32 where negative, 64 bits where it
    is too large); a float as float32; a str; a flat list of one of these (ints as int32). A NumPy scalar or array says
    its own type: `np.int32(5)`, `np.arange(3, dtype=np.uint64)`, `np.array([], str)`. `general.alignment` is always 32.
    progress: called with the bytes written and the bytes in all.

    Raises ParameterError where a value or a tensor does not fit its type, ResourceError where the disk is full.
    """
    specs = list(tensors)
    types = [_type(spec) for spec in specs]
    sizes = [kind.size(spec.shape) for spec, kind in zip(specs, types, strict=True)]
    header = _header({**metadata, "general.alignment": ALIGNMENT}, specs, types, sizes)
    total = len(header) + sum(padded(size, ALIGNMENT) for size in sizes)
    with replacing(Path(path), total) as file:
        done = file.write(header)
        for spec, kind, size in zip(specs, types, sizes, strict=True):
            for data in _encoded(spec, kind):
                progress(done, total)
                done += file.write(data.data)
            done += file.write(bytes(padded(size, ALIGNMENT) - size))
    progress(total, total)


def _type(spec: TensorSpec) -> GGUFType:
    if spec.dtype not in BY_NAME or (spec.dtype not in WRITABLE and spec.dtype not in BLOCKS):
        raise ParameterError(f"{spec.name}: the tensor type {spec.dtype} cannot be written; use {', '.join(WRITABLE)}.")
    kind = BY_NAME[spec.dtype]
    if not 1 <= len(spec.shape) <= 4 or min(spec.shape) < 1:
        raise ParameterError(f"{spec.name} is {spec.shape}; a tensor of a GGUF file has 1 to 4 sizes, none of them 0.")
    if not kind.divides(spec.shape):
        hint = LOOSER.get((kind.use, kind.flat), "")
        raise ParameterError(f"{spec.name} is {spec.shape}; {spec.dtype} needs {kind.rule}.", hint)
    return kind


def _encoded(spec: TensorSpec, kind: GGUFType) -> Iterator[Bytes]:
    """The bytes of the tensor, block after block, and then what stands behind all rows: the one scale of I2_S."""
    rows, trailer, spare = 0, b"", b""
    for shape, data, scaled in in_order(partial(_encode, spec, block) for block in spec.blocks()):
        rows += shape[0]
        if shape[1:] != spec.shape[1:]:
            raise ParameterError(f"{spec.name} is {shape}; it was announced as {spec.shape}.")
        codes, end = data[: data.size - kind.trailer], data[data.size - kind.trailer :].tobytes()
        if scaled and trailer and end != trailer:
            raise ParameterError(
                f"{spec.name}: {kind.name} has one scale per tensor; the rows of this one differ.",
                "The scales of rows fit into TQ2_0, TQ1_0, Q2_0 and IQ2_BN.",
            )
        trailer, spare = (end, spare) if scaled else (trailer, end)
        yield codes
    if rows != spec.shape[0]:
        raise ParameterError(f"{spec.name} is {(rows, *spec.shape[1:])}; it was announced as {spec.shape}.")
    if kind.trailer:
        yield np.frombuffer(trailer or spare, np.uint8)


def _encode(spec: TensorSpec, block: Block) -> tuple[tuple[int, ...], Bytes, bool]:
    """Shape and bytes of a block, and whether its scale matters: that of rows without weights does not."""
    tensor = block()
    try:
        data = encode(tensor, spec.dtype)
    except ParameterError as error:
        raise ParameterError(f"{spec.name}: {error.message}", error.hint) from error
    return tensor.shape, data, not isinstance(tensor, TernaryTensor) or bool(tensor.codes.any())


def _header(metadata: Mapping[str, Any], specs: list[TensorSpec], types: list[GGUFType], sizes: list[int]) -> bytes:
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise ParameterError(f"the tensor {max(names, key=names.count)} occurs twice.")
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(specs), len(metadata))]
    parts += [_string(key) + _value(key, value) for key, value in metadata.items()]
    offset = 0
    for spec, kind, size in zip(specs, types, sizes, strict=True):
        dims = spec.shape[::-1]  # innermost first
        parts.append(_string(spec.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind.id, offset))
        offset += padded(size, ALIGNMENT)
    header = b"".join(parts)
    return header.ljust(padded(len(header), ALIGNMENT), b"\0")


def _string(text: str) -> bytes:
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(f"{text!r:.100} cannot be written as UTF-8: {error.reason}.") from error
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> bytes:
    """A metadata value with its type in front."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, np.ndarray | list | tuple):
        return _array(key, value)
    scalar = _scalar(key, value)
    return struct.pack("<I", _NUMPY[scalar.dtype]) + scalar.tobytes()


def _array(key: str, values: Any) -> bytes:
    words = values.dtype.kind == "U" if isinstance(values, np.ndarray) else len(values) > 0
    if words and all(isinstance(value, str) for value in values):
        return struct.pack("<IIQ", ARRAY, STRING, len(values)) + b"".join(map(_string, values))
    array = values if isinstance(values, np.ndarray) else _numbers(key, values)
    if array.dtype not in _NUMPY or array.ndim != 1:
        raise ParameterError(f"{key}: an array of {array.dtype} with shape {array.shape} has no GGUF type.")
    return struct.pack("<IIQ", ARRAY, _NUMPY[array.dtype], len(array)) + array.tobytes()


def _numbers(key: str, values: Any) -> np.ndarray[Any, Any]:
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= _NATIVE.keys():
        return np.array(values, _NATIVE[kinds.pop()])
    if kinds == {int}:
        return np.array(values, "<i4" if min(values) >= -(2**31) and max(values) < 2**31 else "<i8")
    raise ParameterError(
        f"{key}: a list of {sorted(kind.__name__ for kind in kinds)} has no GGUF type; use a NumPy array."
    )


def _scalar(key: str, value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, np.generic) and value.dtype in _NUMPY:
        return np.asarray(value)
    if type(value) in _NATIVE:
        return np.asarray(value, _NATIVE[type(value)])
    if type(value) is int and -(2**63) <= value < 2**64:
        signed, wide = value < 0, not -(2**31) <= value < 2**32
        return np.asarray(value, f"<{'i' if signed else 'u'}{8 if wide else 4}")
    raise ParameterError(f"{key} is {value!r}; a bool, int, float, str or a flat list of one of these was expected.")
