"""Machines of another type, emulated: ARM gives the sums and the float bits of x86."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-O3", "-ffp-contract=off", "-fno-math-errno", "-w", "-pthread", f"-I{ROOT / 'core'}"]
TARGET = re.compile(r'^BITNET_TARGET\((\w+), *(\w+), *"([^"]*)"', re.MULTILINE)
ARM = ["neon_i8mm", "neon_dotprod", "neon", "scalar"]

TOOLS = ["g++", "aarch64-linux-gnu-g++", "qemu-aarch64"]
needs_arm = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)} (apt: g++-aarch64-linux-gnu qemu-user)"
)


def build(compiler: str, machine: str, folder: Path, *link: str) -> Path:
    """The parity program with every kernel of a machine type, as CMakeLists.txt would compile them."""
    core = ROOT / "core"
    sources = [
        *core.glob("kernels/*.cpp"),
        *core.glob("ops/*.cpp"),
        *core.glob("runtime/*.cpp"),
        Path(__file__).with_name("parity.cpp"),
    ]
    work = [(source, "") for source in sources]
    for isa, where, flags in TARGET.findall((core / "kernels/targets.def").read_text()):
        if where in (machine, "ANY"):
            work.append((core / "kernels" / isa / "kernels.cpp", flags))
    objects = [folder / f"{i}.o" for i in range(len(work))]

    def compile_one(job: tuple[tuple[Path, str], Path]) -> None:
        (source, flags), target = job
        subprocess.run([compiler, *FLAGS, *filter(None, flags.split(";")), "-c", source, "-o", target], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, zip(work, objects, strict=True)))
    subprocess.run([compiler, "-pthread", *link, *objects, "-o", folder / "parity"], check=True)
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
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    machine = {"x86_64": "X86_64", "aarch64": "AARCH64"}.get(platform.machine(), "ANY")
    program = build("g++", machine, tmp_path_factory.mktemp("here"))
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
