"""A GPU on the host: the CUDA sources compiled by g++, the Triton kernels in Triton's interpreter, NumPy's memory."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.cuda import device as gpu
from bitnet.backends.cuda.arguments import packed
from bitnet.backends.cuda.device import PIECE, AnyKernel, Device, Grid, TritonKernel
from bitnet.errors import ResourceError

HEADER = Path(__file__).parent / "emulated_cuda"
FLAGS = "-std=c++20 -O2 -ffp-contract=off -fno-strict-aliasing -fPIC -shared -fno-gnu-unique -Wno-unknown-pragmas"
POISON = 0xA5


@cache
def library(source: str, arch: int) -> ctypes.CDLL:
    """A source of kernels as an architecture has it, compiled once and kept for the next run."""
    names = [kernel.name for kernel in gpu.kernels().values() if kernel.source == source]
    text = f"#define __CUDA_ARCH__ {10 * arch}\n"
    text += f'#include "{gpu.FOLDER / source}"\n' + "".join(f"EMULATE({name})\n" for name in names)
    parts = [HEADER / "emulation.h", *sorted(gpu.FOLDER.iterdir())]
    key = hashlib.sha256(text.encode() + b"".join(part.read_bytes() for part in parts)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"bitnet-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    built = folder / f"{source}-{key}.so"
    if not built.exists():
        part = built.with_suffix(f".{os.getpid()}")
        command = ["g++", *FLAGS.split(), "-DBITNET_EMULATED", f"-I{HEADER}", "-x", "c++", "-", "-o", str(part)]
        subprocess.run(command, input=text, text=True, check=True)
        part.rename(built)
    return ctypes.CDLL(str(built))


class EmulatedGPU(Device):
    """Every piece of memory is poisoned when it is given out, and its end is watched. launches: names, in order."""

    name, processors, cache_bytes, clock = "emulated", 6, 1 << 12, 1e9

    def __init__(self, memory: int = 1 << 32, backwards: bool = False, arch: int = 90) -> None:
        super().__init__()
        self.arch, self.shared = arch, (99 if arch >= 80 else 64) << 10  # the least that such a card has
        self.memory, self.backwards = memory, backwards
        self.launches: list[str] = []
        self._pieces: dict[int, NDArray[np.uint8]] = {}
        self._recording: list[Callable[[], None]] | None = None

    def allocate(self, nbytes: int) -> int:
        if nbytes > self.free_bytes():
            raise ResourceError("The emulated GPU is full.")
        whole = np.full(nbytes + 2 * PIECE, POISON, np.uint8)
        address = -(-whole.ctypes.data // PIECE) * PIECE
        self._pieces[address] = whole
        return address

    def release(self, address: int) -> None:
        del self._pieces[address]

    def free_bytes(self) -> int:
        return self.memory - sum(len(piece) for piece in self._pieces.values())

    def write(self, address: int, values: NDArray[Any]) -> None:
        assert self._recording is None, "a graph cannot be captured while memory is written"
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def read(self, address: int, values: NDArray[Any]) -> None:
        assert self._recording is None, "a graph cannot be captured while memory is read"
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def clear(self, address: int, nbytes: int) -> None:
        assert self._recording is None, "every replay of a graph would clear this memory again"
        ctypes.memset(address, 0, nbytes)

    def launch(self, kernel: AnyKernel, grid: Grid, values: Sequence[Any], shared: int = 0) -> None:
        assert all(size > 0 for size in grid) and grid[1] < 65536 and grid[2] < 65536
        if self._recording is not None:
            self._recording.append(lambda: self._launch(kernel, grid, values, shared))
        else:
            self._launch(kernel, grid, values, shared)

    def _launch(self, kernel: AnyKernel, grid: Grid, values: Sequence[Any], shared: int) -> None:
        self.launches.append(kernel.name)
        if isinstance(kernel, TritonKernel):
            for kind, value in zip(kernel.types, values, strict=True):
                assert value % 16 == 0 or not (kind[0] == "*" or kind.endswith(":16")), f"{kernel.name}: {kind} {value}"
            interpret(kernel, grid, values)
            return
        assert shared <= self.shared - 1024
        core = library(kernel.source, self.arch)
        core.set_backwards(self.backwards)
        pointers, _kept = packed(kernel.types, values)
        getattr(core, f"launch_{kernel.name}")((ctypes.c_uint * 3)(*grid), gpu.THREADS, pointers)

    def seconds(self, work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self._recording = recorded = []
        try:
            work()
        finally:
            self._recording = None
        return lambda: [call() for call in recorded] and None

    def poison_free(self) -> None:
        """What is kept for others to take, as if they had taken it."""
        for size, addresses in self.kept._free.items():
            for address in addresses:
                ctypes.memset(address, POISON, size)

    def poison(self, array: gpu.Array) -> None:
        ctypes.memset(array.address, POISON, array.nbytes)


class Pointer:
    """What Triton's interpreter takes for a tensor."""

    def __init__(self, address: int, dtype: str) -> None:
        self.address, self.dtype = address, dtype

    def data_ptr(self) -> int:
        return self.address

    def untyped_storage(self) -> Pointer:
        return self

    def new_empty(self, *_: Any, **__: Any) -> Pointer:
        return Pointer(self.address, self.dtype)

    def cpu(self) -> Pointer:
        return self

    def nothing(self, *_: Any) -> int:
        return 0

    set_ = copy_ = storage_offset = size = stride = nothing


@cache
def interpreted(name: str) -> Any:
    from triton.runtime.interpreter import InterpretedFunction

    from bitnet.backends.cuda import triton_kernels

    return InterpretedFunction(getattr(triton_kernels, name))


def interpret(kernel: TritonKernel, grid: Grid, values: Sequence[Any]) -> None:
    function = interpreted(kernel.name)
    arguments = [
        Pointer(value, kind[1:]) if kind[0] == "*" else float(value) if kind == "fp32" else int(value)
        for kind, value in zip(kernel.types, values, strict=True)
    ]
    with np.errstate(all="ignore"):
        function[grid](*arguments, **dict(kernel.constants))
