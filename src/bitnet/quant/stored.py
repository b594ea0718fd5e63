"""A matrix that is still in its file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where the bytes of a matrix lie, for a backend that takes them from there (`Ops.put_stored`).

    fd: the open file; they are `nbytes` from byte `offset` on.
    dtype: how they stand for weights, as TensorInfo has it.
    shape: (n, k), row-major.
    scale: of a ternary matrix that may have one scale (the backend makes sure that all blocks agree); else None.
    """

    fd: int
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, int]
    scale: float | None = None
