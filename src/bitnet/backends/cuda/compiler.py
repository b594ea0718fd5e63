"""From the kernels' sources to machine code for a card, kept for the next time.

NVRTC compiles the CUDA sources, Triton its functions. Neither needs a GPU, and what they made is loaded without them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bitnet.backends.cuda.device import FOLDER, AnyKernel, TritonKernel
from bitnet.errors import BitNetError, ResourceError
from bitnet.machine.folders import cache_folder

INSTALL = "Install what the GPU needs: pip install 'bitnet[cuda]'"
FLAGS = ("--std=c++17", "--fmad=false", "--extra-device-vectorization")


@dataclass(frozen=True, slots=True)
class Program:
    """Machine code, and how to launch it.

    entry: the kernel's name in it; "" where it has all of a CUDA source. shared: bytes of shared memory of a program of
    Triton's. parameters: those that it declares: Triton may add some, which are 0.
    """

    code: bytes
    entry: str = ""
    shared: int = 0
    parameters: int = 0


def target(arch: int) -> str:
    """NVRTC's name of an architecture; from Hopper on with the features that only this one has."""
    return f"sm_{arch}{'a' if arch >= 90 else ''}"


def compile_kernel(kernel: AnyKernel, arch: int) -> Program:
    """The program with this kernel in it, from the cache where it is there."""
    if isinstance(kernel, TritonKernel):
        return kept(f"{kernel.name}-{triton_key(kernel, arch)}", lambda: compile_triton(kernel, arch))
    return kept(f"{kernel.source[:-3]}-{cuda_key(kernel.source, arch)}", lambda: compile_cuda(kernel.source, arch))


def kept(name: str, make: Callable[[], Program]) -> Program:
    """What `make` gives, out of a file where it was made before. A damaged file counts as none."""
    folder = cache_folder() / "cuda"
    code, facts = folder / f"{name}.cubin", folder / f"{name}.json"
    try:
        found = json.loads(facts.read_text())
        held = code.read_bytes()
        if hashlib.sha256(held).hexdigest() == found.pop("sha256"):
            return Program(held, **found)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        pass
    program = make()
    text = {key: value for key, value in asdict(program).items() if key != "code"}
    text["sha256"] = hashlib.sha256(program.code).hexdigest()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in ((code, program.code), (facts, json.dumps(text).encode())):
            part = path.with_suffix(f"{path.suffix}.{os.getpid()}")
            part.write_bytes(data)
            part.replace(path)
    except OSError:
        pass  # a disk that is full, or a home that cannot be written to: it is compiled again next time
    return program


@cache
def cuda_key(source: str, arch: int) -> str:
    names = [source, *(path.name for path in sorted(FOLDER.glob("*.cuh")))]
    # What an older driver does not take is compiled again by the older compiler that is installed for it.
    compilers = [installed(name) for name in ("cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")]
    return digest(*((FOLDER / name).read_bytes() for name in names), target(arch), *FLAGS, *compilers)


@cache
def triton_key(kernel: TritonKernel, arch: int) -> str:
    # The version, not the library itself: what is kept is there without Triton.
    return digest((FOLDER.parent / "triton_kernels.py").read_bytes(), repr(kernel), str(arch), installed("triton"))


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def digest(*parts: bytes | str) -> str:
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()[:32]


def compile_cuda(source: str, arch: int) -> Program:
    """A file of kernels/ by NVRTC."""
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise ResourceError(f"CUDA's compiler is not installed: {error}.", INSTALL) from None

    def check(result: tuple[Any, ...]) -> Any:
        if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            name = nvrtc.nvrtcGetErrorString(result[0])[1].decode()
            raise BitNetError(f"{source}: NVRTC: {name}.{log()}", f"This is for the architecture {target(arch)}.")
        return result[1] if len(result) > 1 else None

    def log() -> str:
        if program is None:
            return ""
        size = nvrtc.nvrtcGetProgramLogSize(program)[1]
        text = b" " * size
        nvrtc.nvrtcGetProgramLog(program, text)
        return "\n" + text.rstrip(b"\0 ").decode(errors="replace")

    program = None
    headers = sorted(FOLDER.glob("*.cuh"))
    try:
        program = check(
            nvrtc.nvrtcCreateProgram(
                (FOLDER / source).read_bytes(),
                source.encode(),
                len(headers),
                [header.read_bytes() for header in headers],
                [header.name.encode() for header in headers],
            )
        )
        flags = [flag.encode() for flag in (*FLAGS, f"--gpu-architecture={target(arch)}")]
        check(nvrtc.nvrtcCompileProgram(program, len(flags), flags))
        code = b" " * check(nvrtc.nvrtcGetCUBINSize(program))
        check(nvrtc.nvrtcGetCUBIN(program, code))
    except RuntimeError as error:  # the library itself is missing
        raise ResourceError(f"CUDA's compiler does not run: {error}.", INSTALL) from None
    finally:
        if program is not None:
            nvrtc.nvrtcDestroyProgram(program)
    return Program(code)


def compile_triton(kernel: TritonKernel, arch: int) -> Program:
    """A function of triton_kernels.py."""
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.runtime.jit import JITFunction
    except ImportError as error:
        raise ResourceError(f"Triton is not installed: {error}.", INSTALL) from None
    from bitnet.backends.cuda import triton_kernels

    function = JITFunction(getattr(triton_kernels, kernel.name))
    constants = dict(kernel.constants)
    names = [name for name in function.arg_names if name not in constants]
    types = dict(zip(names, (kind.split(":")[0] for kind in kernel.types), strict=True))
    aligned = [name for name, kind in zip(names, kernel.types, strict=True) if kind[0] == "*" or kind.endswith(":16")]
    place = {name: (function.arg_names.index(name),) for name in function.arg_names}
    source = ASTSource(
        function,
        {name: types.get(name, "constexpr") for name in function.arg_names},
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages, "enable_fp_fusion": False}
    try:
        made: Any = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    except Exception as error:  # Triton's compiler has many
        raise BitNetError(f"Triton cannot compile {kernel.name} for {target(arch)}: {error}") from error
    if getattr(made.metadata, "global_scratch_size", 0):
        raise BitNetError(f"Triton wants memory of its own for {kernel.name}; that is not supported.")
    entry = made.asm["ptx"].partition(".entry")[2]
    parameters = len(re.findall(r"\.param\s", entry.partition("{")[0]))
    threads = re.search(r"\.reqntid\s+(\d+)", entry)
    if parameters < len(kernel.types) or not threads or int(threads[1]) != 32 * kernel.warps:
        raise BitNetError(f"Triton {triton.__version__} made a program of {kernel.name} that cannot be launched.")
    return Program(made.asm["cubin"], made.metadata.name, made.metadata.shared, parameters)
