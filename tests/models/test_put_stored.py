"""A model packed straight from its file is the model that its decoded tensors make."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import tiny

from bitnet import backends, formats
from bitnet.backends.base import Ops, Weight
from bitnet.convert.gguf import Weights
from bitnet.errors import FormatError
from bitnet.formats import trits
from bitnet.quant.stored import StoredTensor
from bitnet.quant.tensor import DenseTensor, TernaryTensor

pytest.importorskip("bitnet._core")
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


class Witness:
    """A CPU backend that counts how its weights came, or takes none from files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuse: bool = False) -> None:
        self.ops: Ops = backends.make("cpu")
        self.stored: list[str] = []
        put_stored = self.ops.put_stored

        def witnessed(stored: StoredTensor) -> Weight | None:
            weight = None if refuse else put_stored(stored)
            self.stored += [stored.dtype] if weight is not None else []
            return weight

        monkeypatch.setattr(self.ops, "put_stored", witnessed)


def assert_same_model(path: Path, monkeypatch: pytest.MonkeyPatch, expected: dict[str, int]) -> None:
    """expected: how many tensors of each type are taken from the file."""
    direct, decoded = Witness(monkeypatch), Witness(monkeypatch, refuse=True)
    logits = [tiny.logits(tiny.load(path, each.ops), IDS) for each in (direct, decoded)]
    np.testing.assert_array_equal(*logits)
    assert {dtype: direct.stored.count(dtype) for dtype in direct.stored} == expected and not decoded.stored


@pytest.mark.parametrize("weights", ["tq2_0", "tq1_0", "i2_s"])
def test_gguf_ternary_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Any) -> None:
    assert weights in get_args(Weights)
    path = tiny.convert(tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"]), tmp_path / "m.gguf", weights=weights)
    assert_same_model(path, monkeypatch, {weights.upper(): 14, "F32": 1})


@pytest.mark.parametrize("embeddings", ["f16", "q8_0", "bf16"])
def test_gguf_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embeddings: str) -> None:
    source = tiny.Synthetic(tiny.VARIANTS["llama-untied"])
    path = tiny.convert(source, tmp_path / "m.gguf", embeddings=embeddings)
    assert_same_model(path, monkeypatch, {"TQ2_0": 14, embeddings.upper(): 2})


def write_folder(folder: Path, source: tiny.Synthetic) -> Path:
    """`source` as a Hugging Face folder with packed projections."""
    header, blobs, at = {}, list[bytes](), 0

    def add(name: str, dtype: str, array: Any) -> None:
        nonlocal at
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        blobs.append(array.tobytes())
        at += array.nbytes

    for name, tensor in source.weights.items():
        if isinstance(tensor, TernaryTensor):
            add(name, "U8", trits.pack_rows(tensor.codes))
            add(name + "_scale", "F32", tensor.scales.reshape(1))
        else:
            add(name, tensor.dtype, tensor.data)
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    quantization = {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"}}
    (folder / "config.json").write_text(json.dumps(source.metadata | quantization))
    return folder


def test_huggingface_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The projections of 160 rows have no quarters of whole row groups: they come through the codec."""
    folder = write_folder(tmp_path / "wide", tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"]))
    assert_same_model(folder, monkeypatch, {"packed": 14, "F16": 1})
    folder = write_folder(tmp_path / "narrow", tiny.Synthetic(tiny.BITNET))
    assert_same_model(folder, monkeypatch, {"packed": 6, "F16": 1})


def test_scales_of_their_own_come_through_the_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"])
    name = "model.layers.1.mlp.up_proj.weight"
    tensor = source.weights[name]
    assert isinstance(tensor, TernaryTensor)
    scales = np.linspace(0.25, 0.5, len(tensor.codes), dtype=np.float32)
    source.weights[name] = TernaryTensor(tensor.codes, scales)
    assert_same_model(tiny.convert(source, tmp_path / "m.gguf"), monkeypatch, {"TQ2_0": 13, "F32": 1})


def test_a_bad_code_is_reported_with_its_tensor(tmp_path: Path) -> None:
    path = tiny.convert(tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"]), tmp_path / "m.gguf")
    with formats.open(path) as checkpoint:
        stored = checkpoint.stored("blk.1.ffn_down.weight")
    assert stored is not None
    with path.open("r+b") as file:
        file.seek(stored.offset + 66 * 5)
        file.write(b"\xff")
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_down\.weight holds the ternary code 3"):
        tiny.load(path, "cpu")


def test_a_scale_that_is_not_finite_is_reported_with_its_tensor(tmp_path: Path) -> None:
    path = tiny.convert(tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"]), tmp_path / "m.gguf")
    with formats.open(path) as checkpoint:
        stored = checkpoint.stored("blk.1.ffn_down.weight")
    assert stored is not None
    with path.open("r+b") as file:
        for block in range(stored.nbytes // 66):
            file.seek(stored.offset + 66 * block + 64)
            file.write(np.float16(np.nan).tobytes())
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_down\.weight has a block whose scale is not a finite number"):
        tiny.load(path, "cpu")


def test_masters_are_rounded_not_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"])
    for name, tensor in source.weights.items():
        if isinstance(tensor, TernaryTensor):
            source.weights[name] = DenseTensor(tensor.dequantize())
    folder = write_folder(tmp_path / "masters", source)
    assert_same_model(folder, monkeypatch, {"F16": 1})
