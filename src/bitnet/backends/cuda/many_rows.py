"""The kernels that take any number of rows: which card has which.

From compute capability 8.0 on they are Triton's (with_triton.py). For older cards Triton's integer products do not
compile, and there is no TF32: they have kernels in CUDA C++ (without_triton.py), which every card can run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from bitnet.backends.cuda.cache import KVCache
from bitnet.backends.cuda.device import Array, Device
from bitnet.backends.cuda.steps import DeviceStep
from bitnet.backends.cuda.weights import DenseMatrix, TernaryMatrix

TRITON_ARCH = 80
WIDTH = 128  # positions of a split of attention

Codes = tuple[Array, Array, Array]  # rows rounded to int8, their multipliers, and the sums of their codes


class ManyRows(ABC):
    def __init__(self, device: Device) -> None:
        self.device = device

    @abstractmethod
    def product(self, x: Codes, weight: TernaryMatrix, out: Array, residual: Array | None) -> None:
        """out (tokens, rows) = x times weight, and the residual."""

    def dense(self, x: Array, weight: DenseMatrix) -> Array:
        out = self.device.empty((len(x), weight.shape[0]))
        if len(x):
            self.floats(x, weight, out)
        return out

    @abstractmethod
    def floats(self, x: Array, weight: DenseMatrix, out: Array) -> None:
        """out (tokens, rows) = x times weight; at least one token."""

    @abstractmethod
    def gathered(self, x: Array, weight: DenseMatrix, ids: Array, counts: Array, out: Array) -> None:
        """Of each row of x, a few, its product with rows of the weight of its own, to the bits of `floats`.

        ids, out: (tokens, most). counts: (tokens,); a token that has more than `most` is left out.
        """

    @abstractmethod
    def queries(self, group: int) -> int:
        """Rows of a program of attention, where `group` heads share keys and values."""

    def attend(
        self,
        query: Array,
        cache: KVCache,
        layer: int,
        at: DeviceStep,
        runs: Array,
        sizes: tuple[int, int, int],
        places: tuple[Any, Array, Array],
    ) -> None:
        """The splits of attention, which join_splits puts together. sizes: heads, splits, window. places: of each
        split's values, largest score and sum of weights, for the step's first row."""
        (heads, splits, window), head_dim = sizes, cache.head_dim
        tables = (at.positions, at.block_tables, at.block_tables.shape[1], cache.slots)
        values = (*tables, heads, splits, head_dim**-0.5, window, *places, head_dim)
        self.splits(cache, heads // cache.kv_heads, len(runs), splits, query, *cache.of_layer(layer), runs, *values)

    @abstractmethod
    def splits(self, cache: KVCache, group: int, runs: int, splits: int, *values: Any) -> None:
        """Launch the kernel of attention, where `group` heads share keys and values, on what both kinds take."""


def many_rows(device: Device, triton: bool | None = None) -> ManyRows:
    """triton: whether it is used; None: where it compiles for the card."""
    from bitnet.backends.cuda.with_triton import WithTriton
    from bitnet.backends.cuda.without_triton import WithoutTriton

    chosen = device.arch >= TRITON_ARCH if triton is None else triton
    return WithTriton(device) if chosen else WithoutTriton(device)
