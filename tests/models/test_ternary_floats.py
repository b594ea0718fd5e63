"""Checkpoints whose floats are a scale times -1, 0 and 1 already, as TriLM and Falcon-E are also published: they load
packed, with the scales they have, and are the same model in whatever they are converted to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.errors import FormatError, ParameterError
from bitnet.models.load import ternary_names
from bitnet.quant.rules import exact_ternary
from bitnet.quant.tensor import DenseTensor, TernaryTensor

FLOAT = {k: v for k, v in tiny.LLAMA.items() if k != "quantization_config"} | tiny.WIDE | {"head_dim": 128}
IDS = list(b"once there was a fox")


def trilm(devices: int) -> tiny.Synthetic:
    """Trained on so many devices: each had some rows of what reads the hidden state, some columns of what writes it,
    and a scale of its own."""
    source, random = tiny.Synthetic(FLOAT), np.random.default_rng(devices)
    for name, weight in source.weights.items():
        if name.endswith("_proj.weight"):
            assert isinstance(weight, TernaryTensor)
            scales = random.uniform(0.01, 0.1, devices).astype(np.float16).astype(np.float32)
            axis = 1 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0
            each = np.repeat(scales, weight.shape[axis] // devices)
            values = weight.codes * (each if axis else each[:, None])
            source.weights[name] = DenseTensor(values.astype(np.float16), "F16")
    return source


@pytest.mark.parametrize(("devices", "down"), [(1, ()), (2, (256, 2)), (4, (256, 4))])
def test_scales_are_as_many_as_devices(devices: int, down: tuple[int, ...]) -> None:
    weights = trilm(devices).weights
    found = exact_ternary(weights["model.layers.0.mlp.down_proj.weight"].dequantize())
    rows = exact_ternary(weights["model.layers.0.mlp.gate_proj.weight"].dequantize())
    assert found is not None and found.scales.shape == down
    assert rows is not None and rows.scales.shape == (() if devices == 1 else (512,))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_ternary_floats_stay_packed_and_exact(devices: int) -> None:
    source = trilm(devices)
    assert len(ternary_names(source, tiny.found_names(source))) == 14
    stored = tiny.Synthetic(FLOAT, {
        name: exact_ternary(w.dequantize()) or w if name.endswith("_proj.weight") else w
        for name, w in source.weights.items()
    })  # fmt: skip
    for name, weight in source.weights.items():
        np.testing.assert_array_equal(stored.weights[name].dequantize(), weight.dequantize(), err_msg=name)
    for backend, model in tiny.every_backend(lambda ops: tiny.load(source, ops)).items():
        with tiny.isa(backend):
            np.testing.assert_array_equal(tiny.logits(model, IDS), tiny.logits(tiny.load(stored, model.ops), IDS))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("dtype", ["tq2_0", "tq1_0", "q2_0", "pq2_0"])
def test_converted_files_are_the_same_model(devices: int, dtype: Any, tmp_path: Path) -> None:
    source = trilm(devices)
    path = tiny.convert(source, tmp_path / "m.gguf", weights=dtype)
    with formats.open(path) as checkpoint:
        assert checkpoint.tensors()["blk.0.attn_q.weight"].dtype == dtype.upper()
    # llama.cpp's order of the rows of q and k is another order of sums.
    tiny.assert_same_logits(tiny.logits(tiny.load(path), IDS), tiny.logits(tiny.load(source), IDS), 1e-4, dtype)


def test_a_type_with_one_scale_does_not_take_several(tmp_path: Path) -> None:
    tiny.convert(trilm(1), tmp_path / "one.gguf", weights="i2_s")
    with pytest.raises(ParameterError, match="I2_S has one scale per tensor"):
        tiny.convert(trilm(2), tmp_path / "two.gguf", weights="i2_s")


def test_float_models_stay_float() -> None:
    source = trilm(1)
    random = np.random.default_rng(0)
    for name in [name for name in source.weights if name.endswith("_proj.weight")]:
        values = random.normal(0, 0.1, source.weights[name].shape)
        values[0] = 0.5  # a row alone says nothing
        source.weights[name] = DenseTensor(values.astype(np.float32))
    assert not ternary_names(source, tiny.found_names(source))


def test_a_matrix_with_ternary_rows_among_others_is_refused(tmp_path: Path) -> None:
    source = trilm(1)
    name = "model.layers.1.mlp.up_proj.weight"
    values = source.weights[name].dequantize()
    values[100, 7] = 0.3
    source.weights[name] = DenseTensor(values)
    with pytest.raises(FormatError, match=r"some rows of .*up_proj.* others are not"):
        tiny.load(source)
    with pytest.raises(FormatError, match=r"some rows of .*up_proj.* others are not"):
        tiny.convert(source, tmp_path / "m.gguf", weights="tq2_0")
