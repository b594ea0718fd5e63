"""Every kernel compiled for cards of five generations: it fits them, spills no more than said here, and
uses their matrix units."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TRITON_ARCHS = (80, 89, 90, 100)
ARCHS = (75, *TRITON_ARCHS)
STATIC = 48 << 10  # bytes of shared memory that a kernel may declare (CUDA's tables)
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes of a block (CUDA's tables)
INTEGER = {80: "IMMA", 89: "IMMA", 90: "IGMMA", 100: "UTCIMMA"}  # products of large tiles
FLOAT = {80: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}


@cache
def compiled(arch: int) -> dict[str, dict[str, Any]]:
    """By kernel; in a process of its own, for this one interprets Triton."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "compile_for_gpu.py"
    done = subprocess.run([sys.executable, script, str(arch)], env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["name"]: each for each in facts}


@pytest.mark.parametrize("arch", ARCHS)
def test_the_kernels_in_cuda_keep_everything_in_registers(arch: int) -> None:
    kernels = {name: facts for name, facts in compiled(arch).items() if not facts["parameters"]}
    assert len(kernels) >= 22
    # A card that has no need of this kernel; a division of float64 that is called.
    stacks = {"gemm_ternary": 64 if arch == 100 else 0, "select_largest": 8}
    for name, facts in kernels.items():
        assert facts["stack"] <= stacks.get(name, 0) and facts["shared"] <= STATIC, (name, facts)
        assert facts["registers"] <= (192 if name == "attend_splits" else 128), (name, facts)


@pytest.mark.parametrize("arch", ARCHS)
def test_a_few_tokens_go_through_the_matrix_unit_with_one_instruction_for_four_weights(arch: int) -> None:
    """Sixteen bytes hold 64 weights: with 4 loads ahead, 2 of them each and for both of its loops, 256 masks."""
    opcodes = compiled(arch)["ternary_gemv"]["opcodes"]
    assert opcodes["IMMA"] == 2 * 4 * 8 * (4 if arch < 80 else 1)  # which had a quarter of the product
    assert 256 <= opcodes["LOP3"] < 256 + 128


@pytest.mark.parametrize("arch", [75, 80, 90])
def test_many_tokens_go_through_the_matrix_unit_without_triton(arch: int) -> None:
    """Two tiles ahead and four eights of tokens, which share the masked weights."""
    kernels, quarters = compiled(arch), 4 if arch < 80 else 1
    assert kernels["gemm_ternary"]["opcodes"]["IMMA"] == 2 * 4 * 8 * quarters
    assert kernels["gemm_ternary"]["opcodes"]["LOP3"] < 2 * 32 + 64
    assert kernels["gemm_grouped"]["opcodes"]["IMMA"] == (2 * 8 + 2 * 2) * quarters


@pytest.mark.parametrize("arch", TRITON_ARCHS)
def test_programs_fit_into_the_card_and_spill_little(arch: int) -> None:
    """The loops keep their sums in registers; some addresses of the end of a large product do not fit beside them."""
    programs = {name: facts for name, facts in compiled(arch).items() if facts["parameters"]}
    assert len(programs) == 7
    for name, facts in programs.items():
        assert facts["shared"] <= SHARED[arch], (name, facts["shared"])
        assert facts["stack"] <= (512 if name in ("gemm large", "attention int8") else 64), (name, facts["stack"])


@pytest.mark.parametrize("arch", TRITON_ARCHS)
def test_products_use_the_cards_matrix_unit(arch: int) -> None:
    kernels = compiled(arch)
    assert kernels["gemm large"]["opcodes"].get(INTEGER[arch], 0) >= 8
    for name in ("gemm split", "gemm grouped"):
        assert kernels[name]["opcodes"]["IMMA"] >= 8
    for name in ("dense", "dense gathered", "attention f16", "attention int8"):
        assert kernels[name]["opcodes"].get(FLOAT[arch], 0) >= 8
