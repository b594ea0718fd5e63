"""A float checkpoint seen as ternary: which projections, as what type, and that the file is what was seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.errors import FormatError, ParameterError
from bitnet.quant.tensor import DenseTensor, TernaryTensor
from bitnet.quant.threshold import Group, Rule, ternarize
from bitnet.ternarize.checkpoint import Choice, Ternarized, projections, stored_type

Make = Callable[..., tiny.Synthetic]
IDS = list(range(3, 20))


def all_by(source: Any, rule: Rule, dtype: str, **options: Any) -> Ternarized:
    return Ternarized(source, {each.spelled: Choice(rule, **options) for each in projections(source)}, dtype)


@pytest.mark.parametrize(
    ("dtype", "group"),
    [
        ("TQ2_0", "tensor"),
        ("TQ2_0", "row"),
        ("TQ2_0", 256),
        ("TQ1_0", "row"),
        ("I2_S", "tensor"),
        ("Q2_0", 64),
        ("Q2_0", 128),
        ("Q2_0", "row"),
        ("PQ2_0", 128),
        ("PTQ1_0", 256),
        ("IQ2_BN", "row"),
        ("IQ1_BN", "row"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_file_gives_the_logits_of_the_model_in_memory(
    dtype: str, group: Group, backend: str, wide_gguf: Path, tmp_path: Path
) -> None:
    if backend == "cpu":
        pytest.importorskip("bitnet._core")
    with formats.open(wide_gguf) as source:
        made = all_by(source, Rule("optimal", group=group), dtype)
        expected = tiny.logits(tiny.load(made, backend), IDS)
        written = tiny.convert(made, tmp_path / "ternary.gguf", weights=dtype.lower())
    with formats.open(written) as checkpoint:
        assert checkpoint.tensors()["blk.0.ffn_down.weight"].dtype == dtype
    np.testing.assert_array_equal(tiny.logits(tiny.load(written, backend), IDS), expected)


def test_projections_are_ternary_and_the_rest_is_untouched(make: Make) -> None:
    source = make()
    made = all_by(source, Rule("threshold", 0.9), "I2_S")
    for name in source.tensors():
        read = made.read(name)
        if name.endswith("_proj.weight"):
            expected = ternarize(source.read(name).dequantize(), Rule("threshold", 0.9))
            np.testing.assert_array_equal(read.dequantize(), expected.dequantize())
        else:
            assert read is source.read(name)


@pytest.mark.parametrize("group", ["tensor", "row", 64])
def test_factors_multiply_the_scales_of_the_rows(group: Group) -> None:
    weight = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)
    factor = np.float32(2) * np.ones(() if group == "tensor" else 6, np.float32)
    if factor.ndim:
        factor[1] = 3
    plain, scaled = (Choice(Rule(group=group), each).apply(weight).dequantize() for each in (None, factor))
    np.testing.assert_allclose(scaled, (plain.T * factor).T)


def test_statistics_are_those_of_the_matrices(make: Make) -> None:
    source = make()
    made, name = all_by(source, Rule("threshold", 0.7), "I2_S"), "model.layers.1.mlp.up_proj.weight"
    read, weight = made.read(name), source.read(name).dequantize().astype(np.float64)
    found = made.statistics[name]
    assert isinstance(read, TernaryTensor)
    assert found.sparsity == pytest.approx((read.codes == 0).mean())
    assert found.error == pytest.approx((np.square(weight - read.dequantize()).sum() / np.square(weight).sum()) ** 0.5)
    assert (found.scale, found.weights, found.exact) == (float(read.scales), weight.size, False)


def test_floats_that_are_ternary_already_keep_their_codes(make: Make) -> None:
    source, name = make(), "model.layers.0.mlp.up_proj.weight"
    codes = np.random.default_rng(1).integers(-1, 2, source.read(name).shape).astype(np.float32)
    source.weights[name] = DenseTensor(codes * np.float32(0.25))
    made = all_by(source, Rule("threshold", 1.9, 64), "Q2_0")
    np.testing.assert_array_equal(made.read(name).dequantize(), codes * np.float32(0.25))
    assert made.statistics[name].exact and made.statistics[name].error == 0


def test_stored_ternary_projections_are_left_alone(make: Make) -> None:
    source, name = make(), "model.layers.0.mlp.up_proj.weight"
    source.weights[name] = TernaryTensor(np.ones(source.read(name).shape, np.int8), np.asarray(0.5, np.float32))
    states = {each.name: each.state for each in projections(source)}
    assert states.pop("layers.0.mlp.up_proj") == "ternary"
    assert set(states.values()) == {"float"} and len(states) == 13


def test_patterns_leave_projections_in_float(make: Make) -> None:
    kept = {each.name for each in projections(make(), ("layers.0.*", "*.down_proj")) if each.state == "kept"}
    assert len(kept) == 8 and "layers.1.mlp.down_proj" in kept and "layers.1.mlp.up_proj" not in kept


def test_a_pattern_without_a_match_is_refused(make: Make) -> None:
    with pytest.raises(ParameterError, match="layer0"):
        projections(make(), ("layer0",))


def test_a_model_trained_as_ternary_cannot_keep_floats(make: Make) -> None:
    source = make(tiny.LLAMA | tiny.WIDE)
    assert {each.state for each in projections(source)} == {"master"}
    with pytest.raises(ParameterError, match="trained as ternary"):
        projections(source, ("*.up_proj",))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(make: Make, bad: float) -> None:
    source, name = make(), "model.layers.1.self_attn.q_proj.weight"
    data = source.weights[name].data.copy()  # type: ignore[union-attr]
    data[3, 5] = bad
    source.weights[name] = DenseTensor(data, "F16")
    with pytest.raises(FormatError, match=r"layers\.1\.self_attn\.q_proj.*not finite"):
        all_by(source, Rule(), "I2_S").read(name)


@pytest.mark.parametrize("scale", [1e6, 1e-10])
def test_scales_beyond_float16_are_refused_where_the_type_has_such(make: Make, scale: float) -> None:
    source, name = make(), "model.layers.1.self_attn.q_proj.weight"
    weight = source.weights[name].dequantize()
    source.weights[name] = DenseTensor(weight * np.float32(scale) / np.abs(weight).mean())
    with pytest.raises(ParameterError, match=r"q_proj.*TQ2_0"):
        all_by(source, Rule("optimal"), "TQ2_0").read(name)
    all_by(source, Rule("optimal"), "I2_S").read(name)


@pytest.mark.parametrize(
    ("metadata", "group", "expected"),
    [
        (tiny.WIDE, "tensor", "TQ2_0"),
        (tiny.WIDE, "row", "TQ2_0"),
        (tiny.WIDE, 256, "TQ2_0"),
        (tiny.WIDE, 128, "Q2_0"),
        (tiny.WIDE, 64, "Q2_0"),
        ({}, "tensor", "I2_S"),  # rows of 64 and 160
        ({"intermediate_size": 128}, "row", "Q2_0"),
    ],
)
def test_the_type_follows_the_group(make: Make, metadata: dict[str, Any], group: Group, expected: str) -> None:
    source = make({k: v for k, v in tiny.LLAMA.items() if k != "quantization_config"} | metadata)
    assert stored_type(projections(source), group) == expected


@pytest.mark.parametrize(
    ("group", "wanted", "message"),
    [
        (96, "auto", "256 do not divide into groups of 96"),
        (32, "auto", "not for 32"),
        ("row", "i2_s", "one scale for a tensor"),
        (128, "tq2_0", "not for 128"),
        (64, "iq2_bn", "each row"),
        ("tensor", "q1_0", "expected auto, tq2_0"),
    ],
)
def test_a_type_that_cannot_hold_the_group_is_refused(make: Make, group: Group, wanted: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        stored_type(projections(make(tiny.LLAMA | tiny.WIDE)), group, wanted)
