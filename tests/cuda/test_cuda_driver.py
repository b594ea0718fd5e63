"""The device through CUDA's driver, with a driver in software: what is called, with which arguments, and what fails."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from emulated_gpu import EmulatedGPU

from bitnet import BitNet, backends
from bitnet.backends.base import Step
from bitnet.backends.cuda import CUDA, compiler
from bitnet.backends.cuda.compiler import Program
from bitnet.backends.cuda.device import AnyKernel, TritonKernel, kernels
from bitnet.backends.cuda.driver import DriverGPU
from bitnet.errors import BitNetError, DeviceError, ParameterError, ResourceError

real = pytest.importorskip("cuda.bindings.driver")
SUCCESS = real.CUresult.CUDA_SUCCESS
version_of = compiler.installed
HANDLE, STREAM = 7, 11


class SoftwareDriver:
    """cuda.bindings.driver's functions over the emulated GPU. calls: their names. fail: name -> status to give."""

    def __init__(self, arch: tuple[int, int] = (9, 0), devices: int = 1, memory: int = 1 << 32) -> None:
        self.gpu, self.arch, self.devices = EmulatedGPU(memory, arch=10 * arch[0] + arch[1]), arch, devices
        self.shared = (227 if arch >= (8, 0) else 64) << 10
        self.calls: list[str] = []
        self.clock = 0.0
        self.fail: dict[str, Any] = {}
        self.kernels: dict[int, AnyKernel] = {}
        self.contexts: set[int] = set()
        self.late = False  # whether copies to the card wait until the stream is waited for
        self.copies: list[tuple[int, int, int]] = []
        for name in ("CUresult", "CUdevice_attribute", "CUfunction_attribute", "CUstream_flags", "CUstreamCaptureMode"):
            setattr(self, name, getattr(real, name))

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return value

        def call(*arguments: Any) -> Any:
            assert len(arguments) == parameters(name), name
            self.calls.append(name)
            if name in self.fail:
                return (self.fail[name], None)
            if name not in ("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuCtxSetCurrent"):
                inits = ("cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain")
                assert name in inits or threading.get_ident() in self.contexts, f"{name} without a context"
            result = value(*arguments)
            return (SUCCESS, *result) if isinstance(result, tuple) else (SUCCESS, result)

        return call

    def cuInit(self, flags: int) -> tuple[()]:
        return ()

    def cuDeviceGetCount(self) -> int:
        return self.devices

    def cuDeviceGet(self, index: int) -> int:
        return index

    def cuDeviceGetName(self, length: int, device: int) -> bytes:
        return b"Software\0\0"

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> int:
        values = {"MAJOR": self.arch[0], "MINOR": self.arch[1], "MULTIPROCESSOR_COUNT": 6, "L2_CACHE_SIZE": 1 << 20}
        return next((v for name, v in values.items() if attribute.name.endswith(name)), self.shared)

    def cuDevicePrimaryCtxRetain(self, device: int) -> int:
        return HANDLE

    def cuCtxSetCurrent(self, context: int) -> tuple[()]:
        assert context == HANDLE
        self.contexts.add(threading.get_ident())
        return ()

    def cuStreamCreate(self, flags: int) -> int:
        return STREAM

    def cuMemGetInfo(self) -> tuple[int, int]:
        return self.gpu.free_bytes(), self.gpu.memory

    def cuMemAlloc(self, nbytes: int) -> Any:
        return real.CUdeviceptr(self.gpu.allocate(nbytes))

    def cuMemFree(self, address: int) -> tuple[()]:
        self.gpu.release(address)
        return ()

    def cuMemcpyHtoDAsync(self, to: int, source: int, nbytes: int, stream: int) -> tuple[()]:
        assert stream == STREAM and self.gpu._recording is None
        if self.late:
            self.copies.append((to, source, nbytes))
        else:
            ctypes.memmove(to, source, nbytes)
        return ()

    def cuMemcpyDtoHAsync(self, to: int, source: int, nbytes: int, stream: int) -> tuple[()]:
        assert stream == STREAM and self.gpu._recording is None
        ctypes.memmove(to, source, nbytes)
        return ()

    def cuMemsetD8Async(self, to: int, byte: int, nbytes: int, stream: int) -> tuple[()]:
        assert stream == STREAM and self.gpu._recording is None
        ctypes.memset(to, byte, nbytes)
        return ()

    def cuStreamSynchronize(self, stream: int) -> tuple[()]:
        assert self.gpu._recording is None
        while self.copies:
            ctypes.memmove(*self.copies.pop(0))
        return ()

    def cuModuleLoadData(self, image: bytes) -> bytes:
        return image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> int:
        kernel = IMAGES[module] if module in IMAGES else kernels()[name.decode()]
        assert module in IMAGES or kernel.source.encode() == module  # type: ignore[union-attr]
        self.kernels[len(self.kernels)] = kernel
        return len(self.kernels) - 1

    def cuFuncGetAttribute(self, attribute: Any, function: int) -> int:
        return 1 << 10

    def cuFuncSetAttribute(self, function: int, attribute: Any, value: int) -> tuple[()]:
        assert value == self.shared - (1 << 10)
        return ()

    def cuLaunchKernel(self, function: int, *rest: Any) -> tuple[()]:
        x, y, z, threads, one, also_one, shared, stream, pointers, extra = rest
        kernel = self.kernels[function]
        types = kernel.types if isinstance(kernel.types, str) else "".join(t[0].replace("*", "p") for t in kernel.types)
        assert (one, also_one, stream, extra) == (1, 1, STREAM, 0)
        assert threads == (32 * kernel.warps if isinstance(kernel, TritonKernel) else 256)
        scratch = EXTRA if isinstance(kernel, TritonKernel) else 0
        places = (ctypes.c_void_p * (len(types) + scratch)).from_address(pointers)
        kinds = {"p": ctypes.c_void_p, "i": ctypes.c_int32, "l": ctypes.c_int64, "f": ctypes.c_float}
        pairs = zip(types + "p" * scratch, places, strict=True)
        values = [kinds[kind].from_address(place).value or 0 for kind, place in pairs]
        assert values[len(types) :] == [0] * scratch
        self.gpu.launch(kernel, (x, y, z), values[: len(types)], shared if not scratch else 0)
        return ()

    def cuEventCreate(self, flags: int) -> list[float]:
        return [0.0]

    def cuEventRecord(self, event: list[float], stream: int) -> tuple[()]:
        self.clock += 1.5
        event[0] = self.clock
        return ()

    def cuEventSynchronize(self, event: list[float]) -> tuple[()]:
        return ()

    def cuEventElapsedTime(self, first: list[float], last: list[float]) -> float:
        return last[0] - first[0]

    def cuEventDestroy(self, event: list[float]) -> tuple[()]:
        event.clear()
        return ()

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> tuple[()]:
        self.gpu._recording = []
        return ()

    def cuStreamEndCapture(self, stream: int) -> Any:
        recorded, self.gpu._recording = self.gpu._recording, None
        return recorded

    def cuGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return list(graph)

    def cuGraphDestroy(self, graph: Any) -> tuple[()]:
        graph.clear()
        return ()

    def cuGraphExecDestroy(self, graph: Any) -> tuple[()]:
        graph.clear()
        return ()

    def cuGraphLaunch(self, graph: Any, stream: int) -> tuple[()]:
        assert stream == STREAM
        for call in graph:
            call()
        return ()


def parameters(name: str) -> int:
    """How many the true function takes, as its documentation begins."""
    inside = re.match(r"\w+\((.*?)\)\n", (getattr(real, name).__doc__ or "") + "\n")
    assert inside, name
    return len([each for each in inside[1].split(",") if each])


IMAGES: dict[bytes, TritonKernel] = {}
EXTRA = 2  # parameters that Triton adds


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of machine code, the names of what it would hold."""

    def program(kernel: AnyKernel, arch: int) -> Program:
        assert arch in (75, 90)
        if isinstance(kernel, TritonKernel):
            image = repr(kernel).encode()
            IMAGES[image] = kernel
            return Program(image, kernel.name, 1000, len(kernel.types) + EXTRA)
        return Program(kernel.source.encode())

    monkeypatch.setattr("bitnet.backends.cuda.driver.compile_kernel", program)


@pytest.mark.parametrize("arch", [(9, 0), (7, 5)])
def test_a_model_runs_through_the_driver(compiled: None, arch: tuple[int, int]) -> None:
    """Eagerly, captured and replayed, in another thread than the one that opened it."""
    api = SoftwareDriver(arch)
    source = tiny.Synthetic(tiny.BITNET)
    model = tiny.load(source, CUDA(DriverGPU(api=api)))
    expected = tiny.logits(tiny.load(source, CUDA(EmulatedGPU(arch=api.gpu.arch))), [3, 14, 15])
    run = model.ops.compile(model, tiny.new_cache(model, 3))
    found: list[Any] = []

    def work() -> None:
        for position, token in enumerate([3, 14, 15]):
            at = np.zeros(1, np.int32)
            found.append(run(Step(at + token, at + position, np.array([0, 1], np.int32), at, at[None])))
        found.append(run(Step.whole([3, 14, 15])))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate([expected, expected]))
    assert api.calls.count("cuGraphLaunch") == 3
    assert api.calls.count("cuStreamBeginCapture") == 1


def test_what_a_model_had_is_free_again(compiled: None) -> None:
    api = SoftwareDriver()
    before = api.gpu.free_bytes()
    model = tiny.load(tiny.Synthetic(tiny.BITNET), CUDA(DriverGPU(api=api)))
    run = model.ops.compile(model, tiny.new_cache(model, 3))
    run(Step.whole([3], want=[0]))
    run(Step.whole([3], want=[0]))
    assert api.gpu.free_bytes() < before
    del model, run
    gc.collect()
    assert api.gpu.free_bytes() == before
    assert api.calls.count("cuGraphExecDestroy") == 1


def test_what_is_written_is_kept_until_it_was_read() -> None:
    """A card that reads the host's pages may do it late; weights are waited for one by one."""
    api = SoftwareDriver()
    gpu, api.late = DriverGPU(api=api), True
    arrays = [gpu.put(np.full(size, size, np.float32)) for size in (1 << 19, 1000)]
    assert [nbytes for _, _, nbytes in api.copies] == [each.nbytes for each in gpu._sent] == [4000]
    source = weakref.ref(gpu._sent[0])
    for array, size in zip(arrays, (1 << 19, 1000), strict=True):
        np.testing.assert_array_equal(array.numpy(), np.full(size, size, np.float32))
    assert source() is None


def test_time_is_taken_on_the_device(compiled: None) -> None:
    gpu = DriverGPU(api=SoftwareDriver())
    assert gpu.seconds(lambda: gpu.zeros((4,))) == 0.0015


def test_no_driver_is_a_clear_error() -> None:
    missing = SimpleNamespace(**{name: getattr(real, name) for name in dir(real)})

    def absent(flags: int) -> Any:
        raise RuntimeError('Failed to dlopen "libcuda.so.1"')

    missing.cuInit = absent
    with pytest.raises(DeviceError, match="no NVIDIA driver.*libcuda"):
        DriverGPU(api=missing)


def test_no_gpu_is_a_clear_error() -> None:
    api = SoftwareDriver()
    api.fail["cuInit"] = real.CUresult.CUDA_ERROR_NO_DEVICE
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        DriverGPU(api=api)
    with pytest.raises(DeviceError, match="1 NVIDIA GPUs; number 3"):
        DriverGPU(3, SoftwareDriver())


@pytest.mark.parametrize("arch", [(7, 2), (6, 1)])
def test_a_card_too_old_is_a_clear_error(arch: tuple[int, int]) -> None:
    with pytest.raises(DeviceError, match=rf"Software has compute capability {arch[0]}\.{arch[1]}; 7\.5"):
        DriverGPU(api=SoftwareDriver(arch))


def test_too_little_memory_is_a_clear_error() -> None:
    api = SoftwareDriver(memory=1 << 20)
    gpu = DriverGPU(api=api)
    api.fail["cuMemAlloc"] = real.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(ResourceError, match="not enough memory"):
        gpu.zeros((1000,))


def test_a_model_that_does_not_fit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ResourceError, match=r"weights need .* GiB of memory"):
        tiny.load(tiny.Synthetic(tiny.BITNET), CUDA(DriverGPU(api=SoftwareDriver(memory=1 << 10))))


@pytest.mark.parametrize("name", ["cuLaunchKernel", "cuStreamSynchronize", "cuMemcpyHtoDAsync", "cuModuleLoadData"])
def test_a_failure_of_the_gpu_is_a_clear_error(compiled: None, name: str) -> None:
    api = SoftwareDriver()
    gpu = DriverGPU(api=api)
    ops = CUDA(gpu)
    api.fail[name] = real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(DeviceError, match="ILLEGAL_ADDRESS"):
        ops.to_host(ops.scale(gpu.put(np.zeros((1, 64), np.float32)), 2.0))


def test_the_backend_without_a_gpu() -> None:
    """On this machine, through every door."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("there is a driver here")
    with pytest.raises(DeviceError, match="driver"):
        backends.make("cuda")
    with pytest.raises(DeviceError, match="driver"):
        BitNet(device="cuda")
    with pytest.raises(ParameterError):
        backends.make("cuda", weights="2bit")
    with pytest.raises(ParameterError):
        backends.make("cuda:x")


def test_a_missing_extra_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DeviceError, match=r"not installed") as found:
        backends.make("cuda")
    assert "bitnet[cuda]" in found.value.hint
    with pytest.raises(ResourceError, match="not installed"):
        compiler.compile_cuda("rows.cu", 90)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ResourceError, match="not installed"):
        compiler.compile_triton(TritonKernel("dense_gemm", (), ()), 90)


def test_programs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = Program(b"code", "entry", 5, 7)
    calls: list[int] = []

    def make() -> Program:
        calls.append(1)
        return made

    assert compiler.kept("a", make) == compiler.kept("a", make) == made
    assert len(calls) == 1
    (tmp_path / "bitnet" / "cuda" / "a.cubin").write_bytes(b"damaged")
    assert compiler.kept("a", make) == made
    (tmp_path / "bitnet" / "cuda" / "a.json").write_text("[]")
    assert compiler.kept("a", make) == made
    assert len(calls) == 3


def test_a_cache_that_cannot_be_written_to_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bitnet").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiler.kept("a", lambda: Program(b"code")).code == b"code"


def test_what_is_kept_belongs_to_its_source_and_its_card() -> None:
    keys = {compiler.cuda_key(source, arch) for source in ("rows.cu", "gemv.cu") for arch in (80, 90)}
    kernel = TritonKernel("dense_gemm", ("i32",), (("A", 1),))
    other = TritonKernel("dense_gemm", ("i32",), (("A", 2),))
    keys |= {compiler.triton_key(each, arch) for each in (kernel, other) for arch in (80, 90)}
    assert len(keys) == 8


@pytest.mark.parametrize("package", ["cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"])
def test_what_is_kept_belongs_to_its_compiler(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Who takes an older one for an older driver would else be given what this driver has refused."""
    before = compiler.cuda_key("rows.cu", 90)
    compiler.cuda_key.cache_clear()
    monkeypatch.setattr(compiler, "installed", lambda name: "0" if name == package else version_of(name))
    assert compiler.cuda_key("rows.cu", 90) != before
    compiler.cuda_key.cache_clear()


def test_a_source_that_does_not_compile_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.cu").write_text("int f() { return nowhere; }")
    monkeypatch.setattr(compiler, "FOLDER", tmp_path)
    with pytest.raises(BitNetError, match=r"broken.cu\(1\).*nowhere"):
        compiler.compile_cuda("broken.cu", 90)
