"""What the operations ask of a GPU, and memory that is used again and again.

There are two devices: driver.py's, and that of the tests, which runs the same kernels on the host.
"""

from __future__ import annotations

import math
import re
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ResourceError

FOLDER = Path(__file__).parent / "kernels"
SOURCES = ("attention.cu", "gemm.cu", "gemv.cu", "rows.cu", "screen.cu", "select.cu", "splits.cu")
THREADS = 256  # of a block, as common.cuh has it
PIECE = 512  # bytes that memory is given out in
LARGE = 1 << 20  # weights and caches: they go back to the driver with the model that had them
_KERNEL = re.compile(r'extern "C" __global__ void(?: __launch_bounds__\([\w, ]+\))?\s+(\w+)\(([^)]*)\)', re.S)
_KINDS = {"int": "i", "float": "f", "long long": "l"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel in CUDA C++. types: a letter for each parameter: p(ointer), i(nt), l(ong), f(loat)."""

    name: str
    source: str
    types: str


@dataclass(frozen=True, slots=True)
class TritonKernel:
    """A function of triton_kernels.py with its constants.

    types: for each parameter Triton's name of its type, "i32:16" a multiple of 16. warps: of a program. stages: of
    loops, whose loads run ahead.
    """

    name: str
    types: tuple[str, ...]
    constants: tuple[tuple[str, Any], ...]
    warps: int = 4
    stages: int = 3


AnyKernel = Kernel | TritonKernel
Grid = tuple[int, int, int]


@cache
def kernels() -> dict[str, Kernel]:
    """Those of the CUDA sources, as these declare them."""
    found = {}
    for source in SOURCES:
        for name, parameters in _KERNEL.findall((FOLDER / source).read_text()):
            types = "".join(_letter(parameter) for parameter in parameters.split(","))
            found[name] = Kernel(name, source, types)
    return found


def _letter(parameter: str) -> str:
    return "p" if "*" in parameter else _KINDS[" ".join(parameter.split()[:-1])]


class Device(ABC):
    """Work is done in the order in which it is given; `read` waits for it."""

    name: str
    arch: int  # compute capability, 90 for 9.0
    processors: int
    cache_bytes: int  # of the second cache
    shared: int  # bytes of shared memory that a block may have
    clock: float  # Hz, at most

    def __init__(self) -> None:
        self.kept, self._passing = Pool(self, exact=True), Pool(self)
        self._chosen = threading.local()

    @abstractmethod
    def allocate(self, nbytes: int) -> int:
        """The address of so many bytes, a multiple of PIECE; ResourceError where there are not as many."""

    @abstractmethod
    def release(self, address: int) -> None: ...

    @abstractmethod
    def free_bytes(self) -> int: ...

    @abstractmethod
    def write(self, address: int, values: NDArray[Any]) -> None: ...

    @abstractmethod
    def read(self, address: int, values: NDArray[Any]) -> None: ...

    @abstractmethod
    def clear(self, address: int, nbytes: int) -> None: ...

    @abstractmethod
    def launch(self, kernel: AnyKernel, grid: Grid, values: Sequence[Any], shared: int = 0) -> None:
        """shared: bytes of dynamic shared memory, of a kernel in CUDA C++."""

    def run(self, name: str, grid: int | tuple[int, ...], *values: Any, shared: int = 0) -> None:
        """A kernel in CUDA C++ by its name; no blocks, no launch."""
        x, y, z = (*((grid,) if isinstance(grid, int) else grid), 1, 1)[:3]
        if x and y and z:
            self.launch(kernels()[name], (x, y, z), [address(value) for value in values], shared)

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work`, which only launches, as one call that may be made again and again."""

    @abstractmethod
    def seconds(self, work: Callable[[], object]) -> float:
        """What the device takes for what `work` launches."""

    @contextmanager
    def passing_in(self, pool: Pool) -> Iterator[None]:
        """Values that pass come from this pool, in this thread."""
        self._chosen.pool = pool
        try:
            yield
        finally:
            del self._chosen.pool

    def trim(self) -> None:
        """Gives back what nobody has now; but not what graphs, which have pools of their own, will use again."""
        self.kept.trim()
        self._passing.trim()

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """For a value that passes: it is gone before the step ends, or soon after."""
        return getattr(self._chosen, "pool", self._passing).empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        """To be kept."""
        array = self.kept.empty(shape, dtype)
        self.clear(array.address, array.nbytes)
        return array

    def put(self, values: NDArray[Any]) -> Array:
        """To be kept."""
        array = self.kept.empty(values.shape, values.dtype)
        self.write(array.address, np.ascontiguousarray(values))
        return array


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """Numbers on a device, row-major. Their memory goes back to its pool with the last reference to them: what is
    launched later may have it, for the device works in order. owner: whose part it is, if it has no memory itself."""

    pool: Pool
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: Array | None = None

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def part(self, first: int, shape: tuple[int, ...]) -> Array:
        """Numbers from the first-th on."""
        return Array(self.pool, self.address + first * self.dtype.itemsize, shape, self.dtype, self)

    def numpy(self) -> NDArray[Any]:
        values = np.empty(self.shape, self.dtype)
        if values.size:
            self.pool.device.read(self.address, values)
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.numpy()

    def write(self, values: NDArray[Any]) -> None:
        self.pool.device.write(self.address, np.ascontiguousarray(values, self.dtype))

    def __del__(self) -> None:
        if self.owner is None:
            self.pool.give(self.address)


class Pool:
    """Memory of a device, kept by size: steps alike take the same pieces in turn, and nothing is asked of the driver.

    What graphs use between their first kernel and their last is theirs alone: it has a pool of its own. exact: what is
    kept long takes no more than it must; else sizes that are nearly alike share pieces.
    """

    def __init__(self, device: Device, exact: bool = False) -> None:
        self.device, self.exact = device, exact
        self._ended = False
        self._free: dict[int, list[int]] = {}
        self._sizes: dict[int, int] = {}

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return Array(self, self.take(math.prod(shape) * np.dtype(dtype).itemsize), shape, np.dtype(dtype))

    def take(self, nbytes: int) -> int:
        size = rounded(nbytes, PIECE if self.exact else max(PIECE, 1 << max(0, nbytes.bit_length() - 4)))
        free = self._free.setdefault(size, [])
        if free:
            return free.pop()
        try:
            address = self.device.allocate(size)
        except ResourceError:  # others' pieces, of sizes that nobody may ask for again
            self.device.trim()
            address = self.device.allocate(size)
        self._sizes[address] = size
        return address

    def trim(self) -> None:
        """What is free goes back to the driver."""
        for free in self._free.values():
            while free:
                self._release(free.pop())

    def give(self, address: int) -> None:
        size = self._sizes[address]
        if self._ended or (self.exact and size >= LARGE):
            self._release(address)
        else:
            self._free[size].append(address)

    def __del__(self) -> None:
        """Everything back to the driver, also what comes later: the collector ends things in any order."""
        self._ended = True
        self.trim()

    def _release(self, address: int) -> None:
        if not sys.is_finalizing():  # the driver may be gone, and with the process everything else
            del self._sizes[address]
            self.device.release(address)


def address(value: Any) -> Any:
    """As an argument of a kernel: arrays stand for their addresses, None for none."""
    if isinstance(value, Array):
        return value.address
    return 0 if value is None else value


def rounded(nbytes: int, piece: int) -> int:
    return max(1, -(-nbytes // piece)) * piece
