"""A model in every tensor type: the core computes what the reference does, with the same bits on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.formats import TensorSpec, write_gguf
from bitnet.formats.gguf_types import BY_NAME, TERNARY, WRITABLE
from bitnet.quant.blocks import BLOCKS
from bitnet.quant.tensor import DenseTensor, TernaryTensor

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def rewritten(source: Path, path: Path, ternary: str, dense: str) -> Path:
    """The file with its projections in the type `ternary`, a scale for each block where the type has one, and its
    embedding in the type `dense`."""
    random = np.random.default_rng(0)

    def spec(name: str) -> TensorSpec:
        tensor = checkpoint.read(name)
        if isinstance(tensor, TernaryTensor):
            (n, k), kind = tensor.shape, BY_NAME[ternary]
            codes = np.where(tensor.codes == 0, 1, tensor.codes) if ternary == "Q1_0" else tensor.codes
            shape = () if kind.flat else (n,) if kind.row_header else (n, k // kind.block)
            scales = random.uniform(0.5, 2, shape).astype(np.float16).astype(np.float32)
            return TensorSpec.of(name, TernaryTensor(codes.astype(np.int8), scales), ternary)
        return TensorSpec.of(name, tensor, dense if name == "token_embd.weight" else "F32")

    with formats.open(source) as checkpoint:
        metadata = {key: value for key, value in checkpoint.metadata.items() if "scores" not in key}
        write_gguf(path, metadata, [spec(name) for name in checkpoint.tensors()])
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.convert(tiny.Synthetic(tiny.VARIANTS["llama"]), tmp_path_factory.mktemp("m") / "m.gguf")


def check(path: Path) -> None:
    expected = tiny.logits(tiny.load(path), IDS)
    found = tiny.every_backend(lambda ops: tiny.load(path, ops))
    bits = None
    for name, model in found.items():
        with tiny.isa(name):
            logits = tiny.logits(model, IDS)
        tiny.assert_same_logits(logits, expected, 1e-3, name)
        if name != "reference":
            bits = logits if bits is None else bits
            np.testing.assert_array_equal(logits.view(np.uint32), bits.view(np.uint32), err_msg=name)


@pytest.mark.parametrize("dtype", [name for name in TERNARY if name in WRITABLE])
def test_projections_of_every_ternary_type(source: Path, tmp_path: Path, dtype: str) -> None:
    path = rewritten(source, tmp_path / "m.gguf", dtype, "F16")
    with formats.open(path) as checkpoint:
        assert {info.dtype for name, info in checkpoint.tensors().items() if "attn_q.w" in name} == {dtype}
    check(path)


@pytest.mark.parametrize("dtype", ["Q4_K", "Q6_K", "Q8_0", "BF16"])
def test_embeddings_and_heads_of_every_float_type(source: Path, tmp_path: Path, dtype: str) -> None:
    path = rewritten(source, tmp_path / "m.gguf", "TQ2_0", dtype)
    check(path)
    table = tiny.load(path, "cpu").weights["lm_head"] if tiny.usable_isas() else None
    if table is not None and dtype in BLOCKS:
        assert (table.dtype, table.nbytes) == (dtype, 272 * BLOCKS[dtype].nbytes)


def test_a_head_in_blocks_is_screened_where_it_is_large() -> None:
    from bitnet.formats import TensorInfo
    from bitnet.models.load import wants_screen

    large, small = TensorInfo("w", (8192, 256), "Q6_K", 0), TensorInfo("w", (512, 256), "Q6_K", 0)
    assert wants_screen(large, "auto", 0) and not wants_screen(small, "auto", 0)
    assert DenseTensor(np.zeros((2, 210), np.uint8), "Q6_K").shape == (2, 256)
