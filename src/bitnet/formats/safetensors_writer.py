"""Writing a Hugging Face folder's weights: safetensors files of a limited size, and the index where there are several.

Source: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ParameterError
from bitnet.formats.gguf_writer import Progress
from bitnet.formats.huggingface import INDEX
from bitnet.formats.safetensors_file import SIZES

SHARD = 4 << 30  # bytes of a file at most, unless one tensor is larger
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class PlainSpec:
    """A tensor to write: `data` gives its bytes, row-major, in as many pieces as it likes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: Callable[[], Iterable[Bytes]]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * SIZES[self.dtype]


def write_safetensors(
    folder: Path, tensors: Iterable[PlainSpec], progress: Progress = lambda done, total: None, shard: int = SHARD
) -> None:
    """model.safetensors in `folder`, or model-00001-of-0000N.safetensors and their index."""
    specs = list(tensors)
    groups = grouped(specs, shard)
    names = [f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    if len(groups) == 1:
        names = ["model.safetensors"]
    done, total = 0, sum(spec.nbytes for spec in specs)
    for name, group in zip(names, groups, strict=True):
        with open(folder / name, "wb") as file:
            file.write(header(group))
            for spec in group:
                end = done + spec.nbytes
                for data in spec.data():
                    progress(done, total)
                    done += file.write(data.data)
                if done != end:
                    raise ParameterError(f"{spec.name} has {done - end:+,} bytes; it was announced as {spec.shape}.")
            file.flush()
            os.fsync(file.fileno())
    if len(groups) > 1:
        home = {spec.name: name for name, group in zip(names, groups, strict=True) for spec in group}
        index = {"metadata": {"total_size": total}, "weight_map": home}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    progress(total, total)


def grouped(specs: list[PlainSpec], shard: int) -> list[list[PlainSpec]]:
    groups: list[list[PlainSpec]] = [[]]
    for spec in specs:
        if groups[-1] and sum(each.nbytes for each in groups[-1]) + spec.nbytes > shard:
            groups.append([])
        groups[-1].append(spec)
    return groups


def header(specs: list[PlainSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        entries[spec.name] = {
            "dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [offset, offset + spec.nbytes]
        }  # fmt: skip
        offset += spec.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text
