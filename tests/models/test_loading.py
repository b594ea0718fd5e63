"""From a checkpoint to a model: what must be there, what must not, and what is said when it is otherwise."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bitnet import formats, models
from bitnet.backends.base import Step
from bitnet.convert import write_checkpoint
from bitnet.errors import FormatError, ModelError, ShapeError, UnsupportedError
from bitnet.formats import Checkpoint
from bitnet.models.hyperparameters import LIMITS
from bitnet.models.names import spellings
from bitnet.quant.rules import exact_ternary, ternarize
from bitnet.quant.tensor import DenseTensor, TernaryTensor

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
EVERY_TENSOR = sorted(tiny.Synthetic(tiny.BITNET).weights)


# Tensors.


@pytest.mark.parametrize("name", EVERY_TENSOR)
def test_a_missing_tensor_is_named(name: str) -> None:
    source = tiny.Synthetic(tiny.BITNET)
    del source.weights[name]
    with pytest.raises(ShapeError, match=rf"{name} is missing"):
        tiny.load(source)


@pytest.mark.parametrize("name", EVERY_TENSOR)
def test_a_misshapen_tensor_is_named_with_both_shapes(name: str) -> None:
    source = tiny.Synthetic(tiny.BITNET)
    shape = source.weights[name].shape
    source.weights[name] = DenseTensor(np.zeros((shape[0] + 1, *shape[1:]), np.float32))
    with pytest.raises(ShapeError) as caught:
        tiny.load(source)
    for part in (name, str((shape[0] + 1, *shape[1:])), str(shape)):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_norm.weight", "adapter"]
)
def test_an_extra_tensor_is_named(name: str) -> None:
    source = tiny.Synthetic(tiny.BITNET)
    source.weights[name] = DenseTensor(np.zeros((4, 4), np.float32))
    with pytest.raises(FormatError, match=f"1 tensors have no place.*{name}"):
        tiny.load(source)


def test_a_tied_head_may_be_repeated_and_is_not_read() -> None:
    source = tiny.Synthetic(tiny.BITNET)
    expected = tiny.logits(tiny.load(source), IDS)
    source.weights["lm_head.weight"] = DenseTensor(np.full((3, 3), np.nan, np.float32))
    source.weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = DenseTensor(np.zeros(8, np.float32))
    np.testing.assert_array_equal(tiny.logits(tiny.load(source), IDS), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.layers.0.input_layernorm.weight"])
def test_weights_that_are_not_numbers_are_refused(name: str, value: float) -> None:
    source = tiny.Synthetic(tiny.BITNET)
    weight = source.weights[name].dequantize().copy()
    weight.flat[3] = value
    source.weights[name] = DenseTensor(weight)
    with pytest.raises(FormatError, match=rf"{name} holds numbers that are not finite"):
        tiny.load(source)


# Names.


def renamed(source: tiny.Synthetic, old: str, new: str) -> tiny.Synthetic:
    return tiny.Synthetic(source.metadata, {name.replace(old, new): weight for name, weight in source.weights.items()})


@pytest.mark.parametrize(
    ("old", "new"),
    [("model.", ""), ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"), ("mlp.ffn_sub_norm", "mlp.ffn_layernorm")],
)
def test_other_spellings_are_the_same_model(old: str, new: str) -> None:
    source = tiny.Synthetic(tiny.BITNET)
    other = renamed(source, old, new)
    assert other.weights.keys() != source.weights.keys()
    np.testing.assert_array_equal(tiny.logits(tiny.load(other), IDS), tiny.logits(tiny.load(source), IDS))


def test_every_name_is_spelled_once_in_each_kind_of_file() -> None:
    _, _, shapes = models.open_model(tiny.Synthetic(tiny.BITNET | {"tie_word_embeddings": False}))
    for kind in ("gguf", "hf"):
        spelled = [each for name in shapes for each in spellings(name, kind)]
        assert len(set(spelled)) == len(spelled)
    assert spellings("layers.10.mlp.down_proj", "gguf") == ("blk.10.ffn_down.weight",)
    assert spellings("layers.10.mlp.ffn_sub_norm", "hf")[:2] == (
        "model.layers.10.mlp.ffn_sub_norm.weight",
        "model.layers.10.mlp.ffn_layernorm.weight",
    )


def test_1bitllm_is_bitnet_under_the_model_type_llama() -> None:
    source = tiny.Synthetic(tiny.SILU)
    other = tiny.Synthetic(tiny.SILU | {"model_type": "llama", "architectures": ["BitnetForCausalLM"]}, source.weights)
    np.testing.assert_array_equal(tiny.logits(tiny.load(other), IDS), tiny.logits(tiny.load(source), IDS))


def test_an_unknown_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'mamba' is not supported"):
        tiny.load(tiny.Synthetic(tiny.BITNET | {"model_type": "mamba"}, {}))


# Which weights are ternary.


def masters(source: tiny.Synthetic, seed: int = 1) -> tiny.Synthetic:
    random = np.random.default_rng(seed)
    weights = {
        name: DenseTensor(random.normal(0, 0.5, w.shape).astype(np.float32)) if isinstance(w, TernaryTensor) else w
        for name, w in source.weights.items()
    }
    return tiny.Synthetic(source.metadata, weights)


def kinds(source: Checkpoint) -> dict[str, bool]:
    return {name: isinstance(weight, TernaryTensor) for name, weight in tiny.load(source).weights.items()}


@pytest.mark.parametrize("config", [tiny.BITNET, tiny.LLAMA])
def test_masters_of_a_ternary_model_are_rounded_and_nothing_else(config: dict[str, Any]) -> None:
    assert {name for name, ternary in kinds(masters(tiny.Synthetic(config))).items() if ternary} == {
        name for name in kinds(tiny.Synthetic(config)) if name.endswith("_proj")
    }


def test_a_llama_without_quantization_stays_float() -> None:
    config = {key: value for key, value in tiny.LLAMA.items() if key != "quantization_config"}
    assert not any(kinds(masters(tiny.Synthetic(config))).values())


@pytest.mark.parametrize(
    ("kept", "float_names"),
    [
        (["lm_head", "down_proj"], ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]),
        (["model.layers.1.mlp"], [f"layers.1.mlp.{each}_proj" for each in ("gate", "up", "down")]),
        (["model.layers.0.self_attn.q_proj"], ["layers.0.self_attn.q_proj"]),
        (["model.layers.0.self_attn.q", "mlp.gate"], []),
        (None, []),
    ],
)
def test_modules_not_to_convert_stay_float(kept: list[str] | None, float_names: list[str]) -> None:
    config = tiny.LLAMA | {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": kept}}
    found = kinds(masters(tiny.Synthetic(config)))
    assert [name for name, ternary in found.items() if name.endswith("_proj") and not ternary] == float_names


@given(
    codes=arrays.arrays(np.int8, st.tuples(st.integers(1, 8), st.integers(1, 12)), elements=st.integers(-1, 1)),
    scale=st.floats(2**-14, 1000, width=16),
)
def test_floats_that_are_ternary_already_are_taken_as_they_are(codes: Any, scale: float) -> None:
    for weight in (codes * np.float16(scale), codes * np.float32(scale)):
        found = exact_ternary(weight.astype(np.float32))
        if not codes.any():
            assert found is None
            continue
        assert found is not None
        np.testing.assert_array_equal(found.codes, codes)
        assert found.scales == np.float32(scale)


def test_floats_that_are_almost_ternary_are_rounded() -> None:
    weight = np.array([[0.5, -0.5, 0.0, 0.5]], np.float32)
    weight[0, 3] = np.nextafter(np.float32(0.5), np.float32(1))
    assert exact_ternary(weight) is None


def test_dequantised_weights_load_as_the_ternary_ones_they_came_from() -> None:
    """Without the check, absmean would shrink the scale by the share of zeros."""
    source = tiny.Synthetic(tiny.BITNET)
    other = tiny.Synthetic(source.metadata, {name: DenseTensor(w.dequantize()) for name, w in source.weights.items()})
    np.testing.assert_array_equal(tiny.logits(tiny.load(other), IDS), tiny.logits(tiny.load(source), IDS))


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.floats(-4, 4, width=16)))
def test_absmean_is_its_definition(weight: Any) -> None:
    alpha = max(sum(abs(float(w)) for w in weight.flat) / weight.size, 1e-5)
    found = ternarize(weight)
    assert float(found.scales) == pytest.approx(alpha, rel=1e-6)
    for w, code in zip(weight.flat, found.codes.flat, strict=True):
        ratio = float(w) / alpha
        if abs(abs(ratio) - 0.5) > 1e-5:
            assert code == max(-1, min(1, round(ratio)))


# GGUF: the same model under llama.cpp's names.


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_checkpoint(tiny.Synthetic(tiny.BITNET), path, weights="i2_s", embeddings="f16", tokenizer=tiny.tokenizer())
    return path


class Edited(Checkpoint):
    """A checkpoint with other metadata, and tensors added."""

    def __init__(self, inner: Checkpoint, metadata: dict[str, Any], tensors: dict[str, Any] | None = None) -> None:
        self.inner, self.kind, self.path, self.architecture = inner, inner.kind, inner.path, inner.architecture
        self.metadata = {k: v for k, v in {**inner.metadata, **metadata}.items() if v is not None}
        self.added = tensors or {}

    def tensors(self) -> Any:
        return {**self.inner.tensors(), **tiny.Synthetic(tiny.BITNET, self.added).tensors()}

    def read(self, name: str) -> Any:
        return self.added[name] if name in self.added else self.inner.read(name)


def edited_gguf(path: Path, metadata: dict[str, Any], tensors: dict[str, Any] | None = None) -> Checkpoint:
    return Edited(formats.open(path), {f"bitnet-b1.58.{key}": value for key, value in metadata.items()}, tensors)


def test_a_scale_beside_a_weight_multiplies_it(gguf_file: Path) -> None:
    scale = DenseTensor(np.array([3], np.float32))
    model = tiny.load(edited_gguf(gguf_file, {}, {"blk.1.attn_q.scale": scale, "blk.0.ffn_up.scale": scale}))
    plain = tiny.load(gguf_file)
    for name, factor in (("layers.1.self_attn.q_proj", 3), ("layers.0.mlp.up_proj", 3), ("layers.0.mlp.gate_proj", 1)):
        assert model.weights[name].scales == np.float32(factor) * plain.weights[name].scales


@pytest.mark.parametrize("scale", [np.ones(2, np.float32), np.array([np.nan], np.float32)])
def test_a_scale_that_is_no_number_is_refused(gguf_file: Path, scale: Any) -> None:
    with pytest.raises(FormatError, match=r"blk\.0\.ffn_up\.scale is"):
        tiny.load(edited_gguf(gguf_file, {}, {"blk.0.ffn_up.scale": DenseTensor(scale)}))


GGUF_KEYS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "context_length": "max_position_embeddings",
}
ABSURD = [0, -1, 2**40, 2**63, 1.5, "8", True, [4, 4], {}]


@pytest.mark.parametrize("value", ABSURD, ids=repr)
@pytest.mark.parametrize("key", GGUF_KEYS)
def test_absurd_sizes_in_a_gguf_file_are_refused(gguf_file: Path, key: str, value: Any) -> None:
    with pytest.raises(FormatError, match=rf"{key}|{GGUF_KEYS[key]}|head_dim"):
        tiny.load(edited_gguf(gguf_file, {key: value}))


@pytest.mark.parametrize("value", ABSURD, ids=repr)
@pytest.mark.parametrize("key", LIMITS)
def test_absurd_sizes_in_a_config_are_refused(key: str, value: Any) -> None:
    with pytest.raises(FormatError, match=rf"{key}|head_dim"):
        tiny.load(tiny.Synthetic(tiny.BITNET | {key: value}, tiny.random_weights(tiny.BITNET)))


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_a_missing_size_is_named(key: str) -> None:
    config = {k: v for k, v in tiny.BITNET.items() if k != key}
    with pytest.raises(FormatError, match=f"{key} is missing"):
        tiny.load(tiny.Synthetic(config, {}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        ({"head_dim": 15}, "head_dim is 15"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"rope_theta": "x"}, "rope_theta is 'x'"),
        ({"rope_parameters": {"rope_theta": [1]}}, r"rope_theta is \[1\]"),
        ({"rope_parameters": "default"}, "expected an object"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_type is 3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rotary frequencies"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "factor is '2'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is missing"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 0, "low_freq_factor": 1, "high_freq_factor": 1}},
            "rotary frequencies",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0}}, "factor of yarn is 0"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_slow": -1}}, "beta_slow of yarn is -1"),
        (
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 0}},
            "max_position_embeddings is 0",
        ),
        ({"hidden_act": 3}, "hidden_act is 3"),
        ({"architectures": 3}, "architectures is 3"),
        ({"architectures": [3]}, "architectures"),
        ({"quantization_config": "bitnet"}, "quantization_config"),
        ({"quantization_config": {"modules_to_not_convert": "lm_head"}}, "modules_to_not_convert is 'lm_head'"),
    ],
)
def test_hyper_parameters_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        tiny.load(tiny.Synthetic(tiny.BITNET | changes, tiny.random_weights(tiny.BITNET)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"query_pre_attn_scalar": -3}, "query_pre_attn_scalar is -3"),
        ({"rope_local_base_freq": 0}, "local_rope_theta is 0"),
        (
            {"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True, "rms_norm_eps": -1}},
            "input_norm_eps",
        ),
    ],
)
def test_hyper_parameters_of_gemma_that_make_no_sense_are_refused(changes: dict[str, Any], words: str) -> None:
    config = tiny.BITNET | {"model_type": "gemma3_text", "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4}
    with pytest.raises(FormatError, match=words):
        tiny.config_of(tiny.Synthetic(config | changes, {}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "tanh"}, "activation 'tanh'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "'longrope'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": False}}, "truncate"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "mscale": 1.0, "mscale_all_dim": 1.0}}, "mscale_all_dim"),
    ],
)
def test_what_is_not_supported_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        tiny.load(tiny.Synthetic(tiny.BITNET | changes, tiny.random_weights(tiny.BITNET)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope.dimension_count": 8}, "rope.dimension_count is 8"),
        ({"attention.key_length": 16, "attention.value_length": 32}, "attention.value_length is 32"),
        ({"rope.scaling.type": "longrope"}, "'longrope'"),
        ({"rope.scaling.type": "yarn"}, "rope.scaling.factor is missing"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": -4.0}, "factor of yarn is -4.0"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.yarn_log_multiplier": 1.0}, "log_mul"),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": -1.0}, "rotary frequencies"),
        ({"rope.scaling.type": "linear"}, "rope.scaling.factor is missing"),
        ({"attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
        ({"rope.freq_base": "x"}, "rope.freq_base is 'x'"),
    ],
)
def test_gguf_metadata_that_makes_no_sense_is_refused(gguf_file: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tiny.load(edited_gguf(gguf_file, changes))


@pytest.mark.parametrize(
    "factors",
    [np.ones(7), np.zeros(8), np.full(8, np.nan), np.ones(0), np.ones((2, 4))],
    ids=["7", "0", "nan", "none", "matrix"],
)
def test_rotary_divisors_of_a_gguf_file_are_checked(gguf_file: Path, factors: Any) -> None:
    with pytest.raises(FormatError, match="rotary frequencies"):
        tiny.load(edited_gguf(gguf_file, {}, {"rope_freqs.weight": DenseTensor(factors.astype(np.float32))}))


# Rotary scaling.


def test_llama3_scaling_is_that_of_its_paper() -> None:
    """Wavelengths below L / high stay, those above L / low are divided, those between are blended."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = tiny.config_of(tiny.Synthetic(tiny.LLAMA | {"head_dim": 128, "rope_parameters": rope}, {}))
    assert config.rope_factors is not None
    for i, divisor in enumerate(config.rope_factors):
        wavelength = 2 * math.pi * 500000.0 ** (2 * i / 128)
        if wavelength < 8192 / 4:
            assert divisor == 1
        elif wavelength > 8192:
            assert divisor == pytest.approx(8)
        else:
            blend = (8192 / wavelength - 1) / 3
            assert 1 / divisor == pytest.approx((1 - blend) / 8 + blend)


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_both_spellings_of_rotary_scaling_are_read(spelling: str) -> None:
    source = tiny.Synthetic(tiny.LLAMA | {spelling: {"rope_type": "linear", "factor": 2.0, "rope_theta": 123.0}}, {})
    assert tiny.config_of(source).rope_factors == (2.0,) * 8
    assert tiny.config_of(source).rope_theta == 123.0


def test_a_config_with_defaults_only_is_what_transformers_makes_of_it(tmp_path: Path) -> None:
    sizes = {k: v for k, v in tiny.BITNET.items() if k not in ("rms_norm_eps", "rope_theta", "hidden_act")}
    config = tiny.config_of(tiny.Synthetic(json.loads(json.dumps(sizes)), {}))
    assert (config.rms_norm_eps, config.rope_theta, config.hidden_act) == (1e-5, 500000.0, "relu2")
    config = tiny.config_of(tiny.Synthetic({**sizes, "model_type": "llama"}, {}))
    assert (config.rms_norm_eps, config.rope_theta, config.hidden_act) == (1e-6, 10000.0, "silu")


# Ternary tables, as Bonsai has them.


@pytest.mark.parametrize("groups", [(), (4,)], ids=["tensor", "group"])
def test_a_ternary_embedding_serves_as_the_head(groups: tuple[int, ...]) -> None:
    source = tiny.Synthetic(tiny.LLAMA | {"model_type": "qwen3", "head_dim": 16})
    random = np.random.default_rng(5)
    codes = random.integers(-1, 2, (272, 64), np.int8)
    scales = np.asarray(random.uniform(0.2, 0.6, (272, *groups) if groups else ()), np.float32)
    source.weights["model.embed_tokens.weight"] = TernaryTensor(codes, scales)
    prompt = [3, 200, 41, 7]
    expected = tiny.logits(tiny.load(source), prompt)
    for backend, model in tiny.every_backend(lambda ops: tiny.load(source, ops)).items():
        with tiny.isa(backend):
            tiny.assert_same_logits(tiny.logits(model, prompt), expected, 2e-5, backend)
    step = Step.whole(prompt)
    model = tiny.load(source, "cpu")
    hidden = np.asarray(model.hidden(step, tiny.new_cache(model, 4)))
    floats = hidden @ source.weights["model.embed_tokens.weight"].dequantize().T
    assert np.abs(floats - expected).max() < 0.02 * np.abs(expected).max()  # what int8 states cost
