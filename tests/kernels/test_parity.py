"""What this machine lacks, emulated: ARM, tiles and old CPUs give the sums and the float bits of the others."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bitnet import _core

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-w", "-pthread", f"-I{ROOT / 'core'}"]
TARGET = re.compile(r'^BITNET_TARGET\((\w+), *(\w+), *"([^"]*)".*$', re.MULTILINE)
ARM = ["neon_i8mm", "neon_dotprod", "neon", "scalar"]

TOOLS = ["g++", "aarch64-linux-gnu-g++", "qemu-aarch64"]
needs_x86 = pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("g++"), reason="needs an x86-64 machine and g++"
)
needs_arm = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)} (apt: g++-aarch64-linux-gnu qemu-user)"
)


def targets_of(machine: str) -> list[tuple[str, str, list[str]]]:
    """Name, line of targets.def and compiler flags of each instruction set of a machine type."""
    found = [
        (match[1], match[0], [flag for flag in match[3].split(";") if flag])
        for match in TARGET.finditer((ROOT / "core/kernels/targets.def").read_text())
        if match[2] in (machine, "ANY")
    ]
    if machine == "X86_64":  # tiles in software, over the vectors of avx512_vbmi
        _, line, flags = next(target for target in found if target[0] == "avx512_vbmi")
        found.insert(0, ("amx_emulated", line.replace("avx512_vbmi,", "amx_emulated,", 1), flags))
    return found


def build(compiler: str, machine: str, folder: Path, *link: str) -> Path:
    """The parity program with every kernel of a machine type, as CMakeLists.txt would compile them."""
    core, here = ROOT / "core", Path(__file__).parent
    targets = targets_of(machine)
    (folder / "kernels").mkdir()
    (folder / "kernels/targets.def").write_text("\n".join(line for _, line, _ in targets))
    work: list[tuple[Path, list[str], Path]] = []
    for source in [*core.glob("ops/*.cpp"), *core.glob("runtime/*.cpp"), core / "kernels/cpu.cpp", here / "parity.cpp"]:
        work.append((source, [], folder / f"{source.stem}-{len(work)}.o"))
    compiled = " ".join(f"X({isa})" for isa, _, _ in targets)
    registry = core / "kernels/registry.cpp"
    work.append((registry, [f"-I{folder}", f"-DBITNET_COMPILED={compiled}"], folder / "registry.o"))
    for isa, _, flags in targets:
        place = here if isa == "amx_emulated" else core / "kernels"
        work.append((place / isa / "kernels.cpp", flags, folder / f"{isa}.o"))

    def compile_one(job: tuple[Path, list[str], Path]) -> None:
        source, flags, target = job
        # The flags come first: the folder's targets.def is before the core's.
        subprocess.run([compiler, *flags, *FLAGS, f"-I{here}", "-c", source, "-o", target], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, work))
    subprocess.run([compiler, "-pthread", *link, *(job[2] for job in work), "-o", folder / "parity"], check=True)
    return folder / "parity"


def results(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    """Instruction set to its lines "case hash"."""
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-500:]
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        isa, rest = line.split(" ", 1)
        found.setdefault(isa, []).append(rest)
    return found


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    machine = {"x86_64": "X86_64", "aarch64": "AARCH64"}.get(platform.machine(), "ANY")
    return build("g++", machine, tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def here(program: Path) -> dict[str, list[str]]:
    return results(subprocess.run([program], capture_output=True, text=True))


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("aarch64-linux-gnu-g++", "AARCH64", tmp_path_factory.mktemp("arm"), "-static")


@needs_arm
@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("cortex-a53", ARM[2:]),  # armv8.0: an instruction of a later one would end the process
        ("cortex-a76", ARM[1:]),
        ("max", ARM),
    ],
)
def test_arm_gives_the_same_bits(here: dict[str, list[str]], arm: Path, cpu: str, expected: list[str]) -> None:
    assert len(here["scalar"]) > 80
    found = results(subprocess.run(["qemu-aarch64", "-cpu", cpu, arm], capture_output=True, text=True))
    assert list(found) == expected
    for isa, lines in (here | found).items():
        assert lines == here["scalar"], isa


@needs_x86
@pytest.mark.skipif(not _core.cpu_features()["avx512_vbmi"], reason="tiles are emulated over AVX-512 alone")
def test_tiles_give_the_same_bits(here: dict[str, list[str]]) -> None:
    assert len(here["amx_emulated"]) > 100
    assert here["amx_emulated"] == here["scalar"]


# An instruction that the emulated CPU lacks ends the process.
@needs_x86
@pytest.mark.skipif(not shutil.which("qemu-x86_64"), reason="needs qemu-x86_64 (apt: qemu-user)")
@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("Conroe", ["scalar"]),  # SSSE3 without SSE4.1
        ("Penryn", ["sse41", "scalar"]),
        ("SandyBridge", ["sse41", "scalar"]),  # AVX without AVX2
        ("Haswell", ["avx2", "sse41", "scalar"]),
    ],
)
def test_older_cpus_run_and_give_the_same_bits(
    here: dict[str, list[str]], program: Path, cpu: str, expected: list[str]
) -> None:
    found = results(subprocess.run(["qemu-x86_64", "-cpu", cpu, program], capture_output=True, text=True))
    assert list(found) == expected
    for isa, lines in found.items():
        assert lines == here["scalar"], isa


@needs_x86
@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump (apt: binutils)")
def test_only_the_files_of_an_instruction_set_have_its_instructions(program: Path) -> None:
    code = {
        path.stem: subprocess.run(
            ["objdump", "-d", "--no-show-raw-insn", path], capture_output=True, text=True, check=True
        ).stdout
        for path in program.parent.glob("*.o")
    }
    having = {
        register: {name for name, text in code.items() if register in text} for register in ("%tmm", "%zmm", "%ymm")
    }
    assert having["%tmm"] == {"amx_int8"}
    assert all(f"\t{name} " in code["amx_int8"] for name in ("ldtilecfg", "tileloadd", "tdpbsud", "tilestored"))
    assert "\ttilerelease" in code["amx_int8"]
    assert having["%zmm"] == {"amx_int8", "amx_emulated", "avx512_vbmi", "avx512_vnni"}
    assert having["%ymm"] - having["%zmm"] == {"avx_vnni", "avx2"}
