"""Libraries for ARM, run by QEMU with the runtime that an ARM board would have."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny

tvm = pytest.importorskip("tvm", reason="compiling needs its extra: pip install 'bitnet[tvm]'")
pytest.importorskip("bitnet._core", reason="the C++ core is not built")

import tvm_ffi

from bitnet import BitNet, SamplingParams, formats
from bitnet.compile import Options, compile_model

EXAMPLE = Path(__file__).parents[2] / "examples/cpp/generate.cpp"
IDS, COUNT, THREADS = [3, 14, 15, 92, 65, 35, 89], 8, 3
SIZES = tiny.WIDE | {"intermediate_size": 8 * 128 * THREADS, "max_position_embeddings": 64}  # 8 pieces for a thread
TOOLS = ("qemu-aarch64", "aarch64-linux-gnu-g++", "aarch64-linux-gnu-gcc")
QEMU = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]

pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}")


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that docs/compile.md makes: the example's program and TVM's runtime for ARM."""
    folder = tmp_path_factory.mktemp("board")
    wheels = [f"apache-tvm=={tvm.__version__}", f"apache-tvm-ffi=={tvm_ffi.__version__}"]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version=311"]
    got = subprocess.run(
        [*pip, "--platform=manylinux_2_28_aarch64", f"--dest={folder}", *wheels], capture_output=True, text=True
    )
    if got.returncode:
        pytest.skip(f"the runtime for ARM cannot be had: {got.stderr.strip()[-200:]}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as files:
            files.extractall(folder / "unpacked", [name for name in files.namelist() if wanted(name)])
    for library in (folder / "unpacked").glob("*/lib/*.so"):
        shutil.copy(library, folder)
    build = ["aarch64-linux-gnu-g++", "-std=c++17", "-O1", str(EXAMPLE), "-o", str(folder / "generate")]
    build += [f"-I{folder}/unpacked/tvm_ffi/include", f"-L{folder}", "-Wl,-rpath,$ORIGIN"]
    subprocess.run([*build, "-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-ldl"], check=True)
    return folder


def wanted(name: str) -> bool:
    return name.endswith(("libtvm_runtime.so", "libtvm_ffi.so")) or name.startswith("tvm_ffi/include/")


@pytest.fixture(scope="module")
def source(board: Path) -> Path:
    return tiny.convert(tiny.Synthetic(tiny.BITNET | SIZES), board / "tiny.gguf")


@pytest.fixture(scope="module")
def expected(source: Path) -> list[int]:
    """What the engine writes on this machine."""
    with BitNet(source) as model:
        sequence = model.llm.add_request(IDS, SamplingParams(max_tokens=COUNT, temperature=0.0, ignore_eos=True))
        list(model.llm.run([sequence]))
        return sequence.output


@pytest.fixture(scope="module", params=["aarch64", "aarch64-dotprod"])
def library(request: pytest.FixtureRequest, source: Path) -> Path:
    path = source.with_name(f"{request.param}.so")
    with formats.open(source) as checkpoint:
        compile_model(checkpoint, path, Options(target=request.param))
    return path


def generate(board: Path, library: Path, cpu: str, ids: Sequence[int] = IDS) -> subprocess.CompletedProcess[str]:
    command = [*QEMU, "-cpu", cpu, str(board / "generate"), str(library), str(COUNT), *map(str, ids)]
    threads = {"TVM_NUM_THREADS": str(THREADS), "TVM_BIND_THREADS": "0"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | threads)


def test_an_arm_library_writes_what_the_engine_writes_here(board: Path, library: Path, expected: list[int]) -> None:
    run = generate(board, library, "max")
    assert (run.returncode, run.stderr) == (0, "")
    assert [int(each) for each in run.stdout.split()] == expected


def test_a_cpu_without_dot_products_is_told_so(board: Path, library: Path, expected: list[int]) -> None:
    run = generate(board, library, "cortex-a53")
    if library.name == "aarch64.so":
        assert [int(each) for each in run.stdout.split()] == expected
    else:
        assert (run.returncode, run.stdout) == (1, "")
        assert "lacks neon_dotprod" in run.stderr
