"""What the operations ask of a GPU, and memory that is used again and again.

There are two devices: driver.py's, and that of the tests, which runs the same kernels on the host.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent / "kernels"
SOURCES = ("attention.cu", "gemv.cu", "rows.cu")
THREADS = 256  # of a block, as common.cuh has it
PIECE = 512  # bytes that memory is given out in
_KERNEL = re.compile(r'extern "C" __global__ void(?: __launch_bounds__\(\w+\))?\s+(\w+)\(([^)]*)\)', re.S)
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

    types: for each parameter Triton's name of its type, "i32:16" a multiple of 16. warps, stages: of a program, and of its loads ahead.
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

    def __init__(self) -> None:
        self.pool = Pool(self)

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

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """`work`, which only launches, as one call that may be made again and again."""

    def empty(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        return Array(self, self.pool.take(math.prod(shape) * np.dtype(dtype).itemsize), shape, np.dtype(dtype))

    def zeros(self, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
        array = self.empty(shape, dtype)
        self.clear(array.address, array.nbytes)
        return array

    def put(self, values: NDArray[Any]) -> Array:
        array = self.empty(values.shape, values.dtype)
        self.write(array.address, np.ascontiguousarray(values))
        return array


@dataclass(frozen=True, slots=True, eq=False)
class Array:
    """Numbers on a device, row-major. Their memory goes back to the pool with the last reference to them: what is
    launched later may have it, for the device works in order."""

    device: Device
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def numpy(self) -> NDArray[Any]:
        values = np.empty(self.shape, self.dtype)
        if values.size:
            self.device.read(self.address, values)
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.numpy()

    def write(self, values: NDArray[Any]) -> None:
        self.device.write(self.address, np.ascontiguousarray(values, self.dtype))

    def __del__(self) -> None:
        self.device.pool.give(self.address)


@dataclass
class Pool:
    """Memory of a device, kept by size: steps alike take the same pieces in turn, and nothing is asked of the driver."""

    device: Device
    _free: dict[int, list[int]] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)

    def take(self, nbytes: int) -> int:
        size = rounded(nbytes)
        free = self._free.setdefault(size, [])
        if free:
            return free.pop()
        address = self.device.allocate(size)
        self._sizes[address] = size
        return address

    def give(self, address: int) -> None:
        size = self._sizes.get(address)
        if size is not None:
            self._free[size].append(address)


def rounded(nbytes: int) -> int:
    """To an eighth of the next power of two at least: sizes that are nearly alike share pieces."""
    piece = max(PIECE, 1 << max(0, nbytes.bit_length() - 4))
    return max(PIECE, -(-nbytes // piece) * piece)
