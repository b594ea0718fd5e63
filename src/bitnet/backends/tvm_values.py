"""Weights and caches of the backend tvm, and the memory that they lie in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray

from bitnet.tensorir.sequence import ALIGNMENT, READABLE, aligned
from bitnet.tensorir.ternary import Shape

PIECE = 64 << 20  # bytes


class Store:
    """Memory for weights, in large pieces: what lies together lies on large pages."""

    def __init__(self) -> None:
        self._room = aligned(0)

    def tensor(self, array: NDArray[Any]) -> Any:
        """A copy of `array`, followed by READABLE bytes at least."""
        data = np.ascontiguousarray(array)
        if data.nbytes + READABLE > len(self._room):
            self._room = aligned(max(data.nbytes + READABLE, PIECE))
        place, self._room = self._room[: data.nbytes], self._room[-(-data.nbytes // ALIGNMENT) * ALIGNMENT :]
        place[:] = data.reshape(-1).view(np.uint8)
        return tvm_ffi.from_dlpack(place.view(data.dtype).reshape(data.shape))


@dataclass(frozen=True, slots=True, eq=False)
class Ternary:
    """weights, scales: tensors of TVM as tensorir/ternary.py has them."""

    shape: tuple[int, int]
    packing: Shape
    weights: Any
    scales: Any

    @property
    def nbytes(self) -> int:
        return nbytes(self.weights) + nbytes(self.scales)


@dataclass(slots=True, eq=False)
class Dense:
    """data: a tensor of TVM (n, k), of a type in dense.TYPES. screen: native.screen(), of an output head."""

    shape: tuple[int, int]
    dtype: str
    data: Any
    screen: Any = None

    @property
    def nbytes(self) -> int:
        return nbytes(self.data)

    @property
    def screen_nbytes(self) -> int:
        return 0 if self.screen is None else nbytes(self.screen)


@dataclass(frozen=True, slots=True, eq=False)
class KVCache:
    """pages: a tensor of TVM, cache_shape()."""

    pages: Any
    kv: str

    @property
    def blocks(self) -> int:
        return int(self.pages.shape[0])

    @property
    def layers(self) -> int:
        return int(self.pages.shape[1])

    @property
    def kv_heads(self) -> int:
        return int(self.pages.shape[3])


@lru_cache
def number(layer: int) -> NDArray[np.int32]:
    """As an argument: all layers share a function."""
    return np.full(1, layer, np.int32)


def nbytes(tensor: Any) -> int:
    return int(np.prod([int(n) for n in tensor.shape])) * np.dtype(str(tensor.dtype)).itemsize


def tensor(array: Any) -> Any:
    return tvm.runtime.tensor(np.ascontiguousarray(array))
