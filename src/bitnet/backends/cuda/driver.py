"""A GPU through CUDA's driver."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from bitnet.backends.cuda.arguments import letters, packed
from bitnet.backends.cuda.compiler import INSTALL, Program, compile_kernel
from bitnet.backends.cuda.device import LARGE, THREADS, AnyKernel, Device, Grid, TritonKernel
from bitnet.errors import DeviceError, ResourceError

LEAST_ARCH = 75  # products of bytes, mma.m8n8k16, begin there; and CUDA 13 compiles for nothing older


def driver() -> ModuleType:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError(f"The GPU's libraries are not installed: {error}.", INSTALL) from None
    return driver


class DriverGPU(Device):
    """api: cuda.bindings.driver, or what stands for it in tests.

    All work goes to one stream. Threads may take turns.
    """

    def __init__(self, index: int = 0, api: Any = None) -> None:
        super().__init__()
        self.api = driver() if api is None else api
        self._here = threading.local()
        self._functions: dict[AnyKernel, tuple[Any, Program]] = {}
        self._modules: dict[str, Any] = {}
        self._sent: list[NDArray[Any]] = []
        try:
            self._check("cuInit", 0)
        except RuntimeError as error:  # libcuda is not there
            raise DeviceError(
                f"There is no NVIDIA driver: {error}", "Install the driver, or run on the CPU: --device cpu"
            ) from None
        count = self._check("cuDeviceGetCount")
        if index >= count:
            raise DeviceError(f"There are {count} NVIDIA GPUs; number {index} was asked for.", "CUDA_VISIBLE_DEVICES?")
        device = self._check("cuDeviceGet", index)
        self.name = self._check("cuDeviceGetName", 256, device).split(b"\0")[0].decode()
        major, minor, self.processors, self.shared, self.cache_bytes, kilohertz = (
            int(
                self._check(
                    "cuDeviceGetAttribute", getattr(self.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), device
                )
            )
            for name in (
                "COMPUTE_CAPABILITY_MAJOR",
                "COMPUTE_CAPABILITY_MINOR",
                "MULTIPROCESSOR_COUNT",
                "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
                "L2_CACHE_SIZE",
                "CLOCK_RATE",
            )
        )
        self.clock = 1e3 * kilohertz
        self.arch = 10 * major + minor
        if self.arch < LEAST_ARCH:
            raise DeviceError(
                f"{self.name} has compute capability {major}.{minor}; 7.5 is the least.",
                "Cards from Turing on will do (T4, RTX 20); run on the CPU: --device cpu",
            )
        self._context = self._check("cuDevicePrimaryCtxRetain", device)
        self._enter()
        self.stream = self._check("cuStreamCreate", self.api.CUstream_flags.CU_STREAM_NON_BLOCKING.value)

    def _check(self, name: str, *arguments: Any) -> Any:
        """What a function of the driver gives beside its status, which must be success."""
        status, *values = getattr(self.api, name)(*arguments)
        if status != self.api.CUresult.CUDA_SUCCESS:
            self._fail(name, status)
        return values[0] if len(values) == 1 else tuple(values)

    def _fail(self, name: str, status: Any) -> None:
        code, codes = status.name, self.api.CUresult
        if status == codes.CUDA_ERROR_OUT_OF_MEMORY:
            raise ResourceError(
                "The GPU has not enough memory.", "Take a smaller context, fewer sequences or --kv int8."
            )
        if status == codes.CUDA_ERROR_NO_DEVICE:
            raise DeviceError("There is no NVIDIA GPU.", "Run on the CPU: --device cpu")
        if name == "cuModuleLoadData":
            raise DeviceError(
                f"The driver does not take the kernels: {code}.",
                "It is probably older than the compiler's CUDA: renew the driver, or take the compiler of its time: "
                "pip uninstall nvidia-cuda-nvrtc; pip install 'cuda-bindings<13' nvidia-cuda-nvrtc-cu12",
            )
        raise DeviceError(f"The GPU failed: {name} gave {code}.", "What it was doing is lost; open the model again.")

    def _enter(self) -> None:
        """Contexts belong to threads; the engine may run in any."""
        if not getattr(self._here, "entered", False):
            self._check("cuCtxSetCurrent", self._context)
            self._here.entered = True

    def allocate(self, nbytes: int) -> int:
        self._enter()
        return int(self._check("cuMemAlloc", nbytes))

    def release(self, address: int) -> None:
        self._enter()
        self._check("cuMemFree", address)

    def free_bytes(self) -> int:
        self._enter()
        free, _total = self._check("cuMemGetInfo")
        return int(free)

    def write(self, address: int, values: NDArray[Any]) -> None:
        """From memory that is not pinned the driver takes a copy first; but not where the card reads the host's pages
        itself (HMM, ATS): "for all other transfers, the function should be fully asynchronous" (CUDA Driver API, "API
        synchronization behavior"). So what is read stays until the stream has been waited for."""
        if values.nbytes:
            self._enter()
            self._sent.append(values)
            self._check("cuMemcpyHtoDAsync", address, values.ctypes.data, values.nbytes, self.stream)
            if values.nbytes >= LARGE:  # weights: not all of them at once
                self.wait()

    def read(self, address: int, values: NDArray[Any]) -> None:
        if values.nbytes:
            self._enter()
            self._check("cuMemcpyDtoHAsync", values.ctypes.data, address, values.nbytes, self.stream)
        self.wait()

    def clear(self, address: int, nbytes: int) -> None:
        self._enter()
        self._check("cuMemsetD8Async", address, 0, nbytes, self.stream)

    def wait(self) -> None:
        self._enter()
        sent, self._sent = self._sent, []
        self._check("cuStreamSynchronize", self.stream)
        sent.clear()

    def seconds(self, work: Callable[[], object]) -> float:
        self._enter()
        first, last = (self._check("cuEventCreate", 0) for _ in range(2))
        try:
            self._check("cuEventRecord", first, self.stream)
            work()
            self._check("cuEventRecord", last, self.stream)
            self._check("cuEventSynchronize", last)
            return float(self._check("cuEventElapsedTime", first, last)) / 1000
        finally:
            for event in (first, last):
                self._check("cuEventDestroy", event)

    def launch(self, kernel: AnyKernel, grid: Grid, values: Sequence[Any], shared: int = 0) -> None:
        self._enter()
        function, program = self._function(kernel)
        if isinstance(kernel, TritonKernel):
            types = letters(kernel.types)
            missing = program.parameters - len(types)
            threads, shared = 32 * kernel.warps, program.shared
            pointers, _kept = packed(types + "p" * missing, [*values, *[0] * missing])
        else:
            threads = THREADS
            pointers, _kept = packed(kernel.types, values)
        if shared > self.shared:
            raise DeviceError(f"{kernel.name} wants {shared} bytes of shared memory; {self.name} has {self.shared}.")
        where = ctypes.addressof(pointers)
        self._check("cuLaunchKernel", function, *grid, threads, 1, 1, shared, self.stream, where, 0)

    def _function(self, kernel: AnyKernel) -> tuple[Any, Program]:
        if kernel not in self._functions:
            name = kernel.name if isinstance(kernel, TritonKernel) else kernel.source
            program = compile_kernel(kernel, self.arch)
            if isinstance(kernel, TritonKernel):
                module = self._check("cuModuleLoadData", program.code)
            elif name in self._modules:
                module = self._modules[name]
            else:
                module = self._modules[name] = self._check("cuModuleLoadData", program.code)
            function = self._check("cuModuleGetFunction", module, (program.entry or kernel.name).encode())
            most = self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            static = self._check(
                "cuFuncGetAttribute", self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function
            )
            self._check("cuFuncSetAttribute", function, most, self.shared - int(static))
            self._functions[kernel] = function, program
        return self._functions[kernel]

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self._enter()
        mode = self.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED  # it may ask for memory
        self._check("cuStreamBeginCapture", self.stream, mode)
        try:
            work()
        finally:
            graph = self._check("cuStreamEndCapture", self.stream)
        ready = self._check("cuGraphInstantiate", graph, 0)
        self._check("cuGraphDestroy", graph)

        def replay() -> None:
            self._enter()
            self._check("cuGraphLaunch", ready, self.stream)

        weakref.finalize(replay, self.api.cuGraphExecDestroy, ready).atexit = False
        return replay
