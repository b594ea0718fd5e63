"""Some rows of a matrix, read alone, are those of the whole matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.formats import Checkpoint, TensorSpec, write_gguf
from bitnet.formats.gguf_types import WRITABLE
from bitnet.quant.tensor import DenseTensor, TernaryTensor

TERNARY = ("TQ1_0", "TQ2_0", "I2_S", "Q1_0", "Q2_0", "PQ2_0", "PTQ1_0", "IQ1_BN", "IQ2_BN")


def check_rows(checkpoint: Checkpoint, name: str) -> None:
    whole, step = checkpoint.read(name).dequantize(), checkpoint.row_step(name)
    n = len(whole)
    for first, last in [
        (0, n),
        (0, step),
        (step, n),
        (n // step // 2 * step, n),
        (1, 3),
        (n - 1, n),
        (2 * step, 5 * step),
    ]:
        rows = slice(first, min(last, n))
        np.testing.assert_array_equal(checkpoint.read_rows(name, rows).dequantize(), whole[rows])


@pytest.mark.parametrize("dtype", WRITABLE)
def test_rows_of_every_gguf_type(dtype: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    codes = random.choice([-1, 1] if dtype == "Q1_0" else [-1, 0, 1], (24, 768)).astype(np.int8)
    if dtype in TERNARY:
        tensor = TernaryTensor(codes, np.asarray(0.5, np.float32))
    else:
        tensor = DenseTensor(random.normal(0, 1, codes.shape).astype(np.float32))
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "x"}, [TensorSpec.of("w", tensor, dtype)])
    with formats.open(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.row_step("w") == 1
        check_rows(checkpoint, "w")


def test_rows_of_i2_s_that_begin_within_a_block(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).choice([-1, 0, 1], (32, 160)).astype(np.int8)
    tensor = TernaryTensor(codes, np.asarray(0.1, np.float32))
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "x"}, [TensorSpec.of("w", tensor, "I2_S")])
    with formats.open(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.row_step("w") == 4  # 4 * 160 is a multiple of 128
        check_rows(checkpoint, "w")


def test_rows_of_a_folder(tmp_path: Path) -> None:
    from bitnet.convert.folder import write_folder

    source = tiny.Synthetic(tiny.BITNET)
    write_folder(source, tmp_path / "hf", tokenizer=tiny.tokenizer())
    with formats.open(tmp_path / "hf") as checkpoint:
        for name, info in checkpoint.tensors().items():
            if len(info.shape) == 2:
                check_rows(checkpoint, name)


def test_rows_of_different_scales_do_not_fit_into_i2_s(tmp_path: Path) -> None:
    from bitnet.errors import ParameterError

    def block(scale: float) -> TernaryTensor:
        return TernaryTensor(np.ones((4, 128), np.int8), np.asarray(scale, np.float32))

    spec = TensorSpec("w", (8, 128), "I2_S", lambda: [lambda: block(0.5), lambda: block(0.25)])
    with pytest.raises(ParameterError, match="one scale per tensor"):
        write_gguf(tmp_path / "m.gguf", {"general.architecture": "x"}, [spec])
    empty = TernaryTensor(np.zeros((4, 128), np.int8), np.asarray(0, np.float32))
    spec = TensorSpec("w", (8, 128), "I2_S", lambda: [lambda: empty, lambda: block(0.25)])
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "x"}, [spec])
    with formats.open(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.read("w").scales == np.float32(0.25)
