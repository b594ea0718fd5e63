"""A model as a library: the same tokens in Python and in a C++ program, and refused where it cannot run."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny

tvm = pytest.importorskip("tvm", reason="compiling needs its extra: pip install 'bitnet[tvm]'")
pytest.importorskip("bitnet._core", reason="the C++ core is not built")

import tvm_ffi

from bitnet import BitNet, SamplingParams, formats
from bitnet.backends.compiled import check_machine
from bitnet.backends.relax import build, write
from bitnet.backends.tvm import TVM
from bitnet.compile import Options, compile_model
from bitnet.errors import BitNetError, FormatError, ParameterError, UnsupportedError
from bitnet.evaluate.comparison import Options as Quick
from bitnet.evaluate.comparison import compare
from bitnet.formats.compiled import CompiledFile
from bitnet.tensorir import native
from bitnet.tensorir.targets import TARGETS

EXAMPLE = Path(__file__).parents[2] / "examples/cpp/generate.cpp"
IDS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.convert(tiny.Synthetic(tiny.BITNET | tiny.WIDE), tmp_path_factory.mktemp("compile") / "tiny.gguf")


def compiled(source: Path, name: str, **options: Any) -> Path:
    path = source.with_name(name)
    with formats.open(source) as checkpoint:
        compile_model(checkpoint, path, Options(**{"kernels": "tvm", **options}))
    return path


@pytest.fixture(scope="module")
def library(source: Path) -> Path:
    return compiled(source, "tiny.so")


def greedy(path: Path, count: int = 16) -> list[int]:
    with BitNet(path) as model:
        params = SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
        sequence = model.llm.add_request(IDS, params)
        list(model.llm.run([sequence]))
        return sequence.output


def test_a_library_opens_as_any_model_and_writes_the_same(source: Path, library: Path) -> None:
    assert greedy(library) == greedy(source)
    with BitNet(source) as model, BitNet(library) as other:
        assert other.tokenize("the end") == model.tokenize("the end")
        assert [each.logprob for each in other.score("the inn")] == [each.logprob for each in model.score("the inn")]


def test_the_avx2_library_writes_the_same(source: Path) -> None:
    path = compiled(source, "v3.so", target="x86-64-v3", kv="f32", ctx_size=48)
    try:
        with BitNet(path, kv="f32") as model:
            assert model.llm.ctx_size == 48
            with pytest.raises(ParameterError, match="f32"):
                BitNet(path, kv="f16")
    except UnsupportedError as error:
        pytest.skip(error.message)


def test_a_cpp_program_without_python_writes_the_same(source: Path, library: Path) -> None:
    if not shutil.which("g++"):
        pytest.skip("there is no C++ compiler")
    program, ffi = source.with_name("generate"), Path(tvm_ffi.__file__).parent
    folders = [Path(tvm.__file__).parent / "lib", ffi / "lib"]
    flags = [*(f"-L{each}" for each in folders), *(f"-Wl,-rpath,{each}" for each in folders)]
    libraries = ["-Wl,--no-as-needed", "-ltvm_runtime", "-ltvm_ffi", "-ldl"]
    build = ["g++", "-std=c++17", str(EXAMPLE), f"-I{ffi}/include", "-o", str(program), *flags, *libraries]
    subprocess.run(build, check=True, capture_output=True)
    run = subprocess.run([program, library, "16", *map(str, IDS)], check=True, capture_output=True, text=True)
    assert [int(each) for each in run.stdout.split()] == greedy(source)
    refused = subprocess.run([program, library, "1", "9999"], capture_output=True, text=True)
    assert refused.returncode
    assert "ids holds a number that is out of range" in refused.stderr


def test_the_manifest_says_what_it_is(source: Path, library: Path) -> None:
    with formats.open(library) as checkpoint, formats.open(source) as original:
        assert isinstance(checkpoint, CompiledFile)
        assert checkpoint.tensors().keys() == original.tensors().keys()
        assert checkpoint.manifest["target"]["tvm"] == tvm.__version__
        assert checkpoint.manifest["kernels"] == "tvm"
        assert len(checkpoint.manifest["source"]["sha256"]) == 64
        with pytest.raises(UnsupportedError, match="compiled"):
            checkpoint.read("token_embd.weight")


@pytest.mark.parametrize("size", [0, 20, 64, 4000, -1])
def test_a_library_that_is_cut_short_is_refused(library: Path, tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.so"
    path.write_bytes(library.read_bytes()[:size])
    with pytest.raises(FormatError):
        BitNet(path)


def test_a_library_of_somebody_else_is_refused(tmp_path: Path) -> None:
    other = next(Path(tvm_ffi.__file__).parent.glob("lib/libtvm_ffi.so"))
    with pytest.raises(FormatError, match="did not make"):
        formats.open(other)


@pytest.mark.parametrize(
    ("machine", "features", "says"),
    [("riscv64", {"avx2": True}, "riscv64"), ("x86_64", {"avx2": False}, "avx2"), ("x86_64", {}, "avx2")],
)
def test_a_machine_that_cannot_run_it_is_told_so(machine: str, features: Mapping[str, bool], says: str) -> None:
    target = {"machine": "x86_64", "features": ["avx2"], "name": "x86-64-v3"}
    with pytest.raises(UnsupportedError, match=says):
        check_machine(Path("model.so"), target, machine, features)


def test_native_kernels_are_called_from_the_library_and_write_the_same(source: Path) -> None:
    path = compiled(source, "native.so", kernels="native")
    assert path.with_name(native.NAME).exists()
    assert greedy(path) == greedy(source)
    found = compare([(source, "cpu"), (path, "cpu")], "the end of the inn " * 20, Quick(8, 4, 1, ctx=32))
    base, other = found.subjects
    assert (base.backend, other.backend) == ("cpu", "compiled (native)")
    assert (base.compile_s, other.file_bytes) == (None, path.stat().st_size)
    assert other.compile_s
    assert found.divergence is not None
    assert (found.divergence.quantile(1), found.alike) == (0, found.written)


def test_cuda_code_is_generated_where_no_gpu_is() -> None:
    ops = TVM(TARGETS["cuda"])
    model = tiny.load(tiny.Synthetic(tiny.BITNET), ops)
    executable = build(write(model, ops, "f16", 64), ops.target)
    (host,) = executable.mod.imports
    sources = [each.inspect_source() for each in host.imports if each.kind == "cuda"]
    assert sum(text.count("__dp4a") for text in sources) >= 4
    with pytest.raises(UnsupportedError, match="cuda"):
        check_machine(Path("m.so"), {"machine": "x86_64", "features": ["cuda"], "name": "cuda"}, "x86_64", {})


@pytest.mark.parametrize(
    "options",
    [
        {"target": "z80"},
        {"kv": "int8"},
        {"ctx_size": -1},
        {"kernels": "fast"},
        {"target": "cuda", "kernels": "native"},
        {"target": "cuda", "tune": 1},
    ],
)
def test_options_that_make_no_sense_are_refused(source: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        compiled(source, "none.so", **options)
    assert not source.with_name("none.so").exists()


def test_what_is_there_is_replaced_only_by_force(source: Path, library: Path) -> None:
    with pytest.raises(BitNetError, match="exists"):
        compiled(source, library.name)
