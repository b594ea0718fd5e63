"""The `gguf` package, llama.cpp's own reader and writer in Python, finds in our files what we put there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from bitnet import formats

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("weights", ["tq2_0", "tq1_0"])
@pytest.mark.parametrize("name", tiny.VARIANTS)
def test_the_gguf_package_reads_what_is_written(name: str, weights: str, tmp_path: Path) -> None:
    path = tiny.convert(tiny.Synthetic(tiny.VARIANTS[name]), tmp_path / "m.gguf", weights=weights, embeddings="q8_0")
    reader = gguf.GGUFReader(path)
    with formats.open(path) as checkpoint:
        for key, value in checkpoint.metadata.items():
            assert reader.get_field(key).contents() == value, key
        for tensor in reader.tensors:
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(checkpoint.read(tensor.name).dequantize(), theirs, err_msg=tensor.name)
        assert len(reader.tensors) == len(checkpoint.tensors())


@pytest.mark.parametrize("name", ["bitnet-silu", "llama", "llama-llama3", "llama-linear", "llama-head-dim"])
def test_names_are_those_of_the_gguf_package(name: str, tmp_path: Path) -> None:
    """Every key and tensor name is one that llama.cpp's own converter could have written."""
    path = tiny.convert(tiny.Synthetic(tiny.VARIANTS[name]), tmp_path / "m.gguf")
    with formats.open(path) as checkpoint:
        keys, tensors, architecture = checkpoint.metadata.keys(), checkpoint.tensors().keys(), checkpoint.architecture
    groups = [vars(group) for group in vars(gguf.constants.Keys).values() if isinstance(group, type)]
    known = {key.replace("{arch}", architecture) for group in groups for key in group.values() if isinstance(key, str)}
    assert keys <= known
    number = next(n for n, spelled in gguf.MODEL_ARCH_NAMES.items() if spelled == architecture)
    names = [gguf.TENSOR_NAMES[each] for each in gguf.MODEL_TENSORS[number]]
    layers = range(tiny.WIDE["num_hidden_layers"])
    assert {each.removesuffix(".weight") for each in tensors} <= {n.format(bid=i) for n in names for i in layers}
