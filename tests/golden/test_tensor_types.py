"""Every tensor type of llama.cpp: its bytes mean to us what they mean to it, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitnet.formats.gguf_codecs import decode, encode
from bitnet.formats.gguf_types import TERNARY
from bitnet.quant.tensor import TernaryTensor

GOLDEN = np.load(Path(__file__).parent / "tensor_types.npz")
TYPES = sorted(name.removesuffix(".bytes") for name in GOLDEN if name.endswith(".bytes"))


@pytest.mark.parametrize("dtype", TYPES)
def test_values_are_those_of_llama_cpp(dtype: str) -> None:
    values = GOLDEN[f"{dtype}.values"]
    found = decode(GOLDEN[f"{dtype}.bytes"].reshape(-1), values.shape, dtype)
    assert isinstance(found, TernaryTensor) == (dtype in TERNARY)
    np.testing.assert_array_equal(found.dequantize(), values)


@pytest.mark.parametrize("dtype", sorted({*TYPES} & {*TERNARY}))
def test_ternary_bytes_are_those_of_llama_cpp(dtype: str) -> None:
    data = GOLDEN[f"{dtype}.bytes"]
    tensor = decode(data.reshape(-1), GOLDEN[f"{dtype}.values"].shape, dtype)
    np.testing.assert_array_equal(encode(tensor, dtype), data.reshape(-1))
