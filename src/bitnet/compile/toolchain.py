"""The C compiler that links a library for a machine: this one's, a cross compiler, or zig from the package ziglang."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from bitnet.errors import BitNetError, ParameterError

MOST_SECONDS = 600


def compiler(machine: str) -> list[str]:
    """The command of a C compiler for `machine`; $BITNET_CC says which."""
    if os.environ.get("BITNET_CC"):
        return shlex.split(os.environ["BITNET_CC"])
    names = ["cc", "gcc", "clang"] if machine == platform.machine() else [f"{machine}-linux-gnu-gcc"]
    for name in names:
        if found := shutil.which(name):
            return [found]
    if find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{machine}-linux-gnu"]
    raise ParameterError(
        f"There is no C compiler for {machine}: looked for {', '.join(names)}.",
        "Install one (apt-get install gcc, gcc-aarch64-linux-gnu), or: pip install ziglang",
    )


def run(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BitNetError(f"{command[0]} failed: {error}") from error
    if done.returncode:
        raise BitNetError(f"{' '.join(command[:2])} failed: {done.stderr.strip()[-1500:]}")


def link(machine: str, objects: Sequence[str | Path], output: str | Path, options: Sequence[str] = ()) -> None:
    run([*compiler(machine), "-shared", "-fPIC", "-o", str(output), *map(str, objects), *options])


def compile_c(machine: str, source: Path, output: Path) -> None:
    run([*compiler(machine), "-c", "-O1", "-fPIC", "-o", str(output), str(source)])
