"""Compiles every kernel for an architecture, in a process of its own, and prints what came of it.

Triton cannot interpret and compile in one process. One line a kernel: its registers, memory and instructions.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import triton

from bitnet.backends.cuda.compiler import Program, compile_cuda, compile_triton
from bitnet.backends.cuda.device import SOURCES
from bitnet.backends.cuda.many_rows import TRITON_ARCH
from bitnet.backends.cuda.with_triton import attention_kernel, dense_kernel, gemm_kernel

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def report(program: Program, label: str = "") -> None:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.code)
        file.flush()
        usage, code = (
            subprocess.run([TOOLS / "cuobjdump", option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("--dump-resource-usage", "--dump-sass")
        )
    listings = dict(re.findall(r"Function : (\w+)\n(.*?)(?=Function : |\Z)", code, re.S))
    for name, registers, stack, shared, local in USAGE.findall(usage):
        opcodes = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listings[name])
        counts = Counter(opcode.split(".")[0] for opcode in opcodes)
        facts = {
            "name": label or name,
            "registers": int(registers),
            "stack": int(stack) + int(local),
            "shared": program.shared or int(shared),
            "parameters": program.parameters,
            "opcodes": counts,
        }
        print(json.dumps(facts), flush=True)


def main(arch: int) -> None:
    for source in SOURCES:
        report(compile_cuda(source, arch))
    if arch < TRITON_ARCH:
        return
    report(compile_triton(gemm_kernel(1, 64, True, False, False), arch), "gemm split")
    report(compile_triton(gemm_kernel(4, 128 if arch >= 90 else 64, False, False, True), arch), "gemm large")
    report(compile_triton(gemm_kernel(1, 16, False, True, False), arch), "gemm grouped")
    report(compile_triton(dense_kernel("BF16", True), arch), "dense")
    report(compile_triton(dense_kernel("BF16", True, 4096), arch), "dense gathered")
    for dtype in ("f16", "int8"):
        report(compile_triton(attention_kernel(dtype, 4, 128, arch), arch), f"attention {dtype}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
