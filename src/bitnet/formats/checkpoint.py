"""A model on disk, opened: its configuration, its tokenizer and its tensors by name, read when asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.quant.stored import StoredTensor
from bitnet.quant.tensor import Tensor, rows_of


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a file says about a tensor before any of its data is read."""

    name: str
    shape: tuple[int, ...]  # row-major: (n outputs, k inputs)
    dtype: str  # "F32", "F16", "BF16", "Q8_0", "I2_S", "TQ1_0", "TQ2_0", "packed" (codes beside a weight_scale) ...
    nbytes: int


class Checkpoint(ABC):
    """Names and metadata are as the file spells them; models/ translates them.

    kind: "gguf" or "hf".
    architecture: `general.architecture` or `model_type`.
    metadata: the GGUF key-value pairs, or config.json.
    """

    kind: str
    path: Path
    architecture: str
    metadata: Mapping[str, Any]

    @abstractmethod
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every weight, in file order; a packed weight and its scale are one entry."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """Decode one tensor. Ternary types come back as codes and scales, the others in their stored precision."""

    def row_step(self, name: str) -> int:
        """How many rows of the matrix `name` can be read alone, from every multiple of this number on."""
        return self.tensors()[name].shape[0]

    def read_rows(self, name: str, rows: slice) -> Tensor:
        """Some rows of a matrix as `read` decodes them; only these are read where they are whole steps."""
        return rows_of(self.read(name), rows)

    def stored(self, name: str) -> StoredTensor | None:
        """Where the matrix `name` lies, unread and unchecked; None where only `read` knows what to make of it."""
        return None

    def close(self) -> None:
        """Close the file; tensors read before stay valid."""

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
