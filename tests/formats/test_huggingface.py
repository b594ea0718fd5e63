"""Hugging Face folders: one file or shards, master weights or packed ones."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from bitnet import formats
from bitnet.errors import FormatError, ShapeError, UnsupportedError
from bitnet.formats import trits
from bitnet.quant.tensor import DenseTensor, TernaryTensor

INDEX = "model.safetensors.index.json"
WEIGHT = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """folder({file: tensors}, **config) writes a model folder and returns it."""

    def make(files=None, index=None, **config):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bitnet", **config}))
        for name, tensors in (files or {"model.safetensors": {"a": np.ones(2, np.float32)}}).items():
            save_file(tensors, tmp_path / name)
        if index is not None:
            (tmp_path / INDEX).write_text(json.dumps({"weight_map": index}))
        return tmp_path

    return make


@pytest.fixture
def packed(ternary):
    """Codes and the tensors that store them with weight_scale 4."""
    codes = ternary(8, 6).codes
    return codes, {WEIGHT: trits.pack_rows(codes), WEIGHT + "_scale": np.array([4], np.float32)}


def test_a_folder_is_opened(folder):
    with formats.open(folder(hidden_size=2)) as checkpoint:
        assert (checkpoint.kind, checkpoint.architecture, checkpoint.metadata["hidden_size"]) == ("hf", "bitnet", 2)
        info = checkpoint.tensors()["a"]
        assert (info.shape, info.dtype, info.nbytes) == ((2,), "F32", 8)
        assert checkpoint.read("a").data.tolist() == [1, 1]


@pytest.mark.parametrize(
    "quantization, scale",
    [
        ({"linear_class": "autobitlinear", "quantization_mode": "offline"}, 4),
        ({"linear_class": "bitlinear"}, 0.25),
        ({}, 0.25),
        (None, 0.25),
    ],
)
def test_the_linear_class_says_whether_weight_scale_multiplies_or_divides(folder, packed, quantization, scale):
    codes, tensors = packed
    config = {} if quantization is None else {"quantization_config": {"quant_method": "bitnet", **quantization}}
    with formats.open(folder({"model.safetensors": tensors}, **config)) as checkpoint:
        weight = checkpoint.read(WEIGHT)
        assert isinstance(weight, TernaryTensor) and (weight.codes == codes).all()
        assert weight.scales.shape == () and weight.scales == np.float32(scale)


def test_a_packed_weight_and_its_scale_are_one_tensor(folder, packed):
    with formats.open(folder({"model.safetensors": packed[1]})) as checkpoint:
        info = checkpoint.tensors()[WEIGHT]
        assert list(checkpoint.tensors()) == [WEIGHT]
        assert (info.shape, info.dtype, info.nbytes) == ((8, 6), "packed", 16)


def test_a_scale_in_bf16_is_read(folder, packed, save, safetensors_bytes):
    path = folder()
    header = {
        WEIGHT: {"dtype": "U8", "shape": [1, 2], "data_offsets": [0, 2]},
        WEIGHT + "_scale": {"dtype": "BF16", "shape": [1], "data_offsets": [2, 4]},
    }
    save(safetensors_bytes(header, b"\x55\x55\x00\x40"), "model.safetensors")
    with formats.open(path) as checkpoint:
        assert checkpoint.read(WEIGHT).scales == 0.5 and not checkpoint.read(WEIGHT).codes.any()


SIGNALLING = np.array([0x7FA00000], np.uint32).view(np.float32)  # a NaN that arithmetic warns of


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [[0.0], [-1.0], [np.nan], SIGNALLING, [1e-40], [np.inf], [1.0, 2.0], []])
def test_a_scale_that_is_not_one_positive_number_is_refused(folder, packed, scale):
    tensors = packed[1] | {WEIGHT + "_scale": np.array(scale, np.float32)}
    with (
        formats.open(folder({"model.safetensors": tensors})) as checkpoint,
        pytest.raises(FormatError, match=r"q_proj.weight_scale is"),
    ):
        checkpoint.read(WEIGHT)


def test_a_bad_code_names_the_tensor(folder, packed):
    packed[1][WEIGHT][1, 2] = 0xFF
    with (
        formats.open(folder({"model.safetensors": packed[1]})) as checkpoint,
        pytest.raises(FormatError, match=f"{WEIGHT} holds the ternary code 3"),
    ):
        checkpoint.read(WEIGHT)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
def test_codes_that_were_saved_unpacked_are_ternary_too(folder, packed, dtype):
    tensors = {WEIGHT: packed[0].astype(dtype), WEIGHT + "_scale": np.array([4], np.float32)}
    with formats.open(folder({"model.safetensors": tensors})) as checkpoint:
        info = checkpoint.tensors()[WEIGHT]
        assert (info.shape, info.dtype) == ((8, 6), "packed")
        assert (checkpoint.read(WEIGHT).codes == packed[0]).all() and checkpoint.read(WEIGHT).scales == 0.25


@pytest.mark.parametrize("value", [0.5, 2.0, np.nan])
def test_a_scale_beside_master_weights_is_refused(folder, value):
    tensors = {WEIGHT: np.full((4, 4), value, np.float32), WEIGHT + "_scale": np.array([4], np.float32)}
    with (
        formats.open(folder({"model.safetensors": tensors})) as checkpoint,
        pytest.raises(FormatError, match="other than -1, 0 and 1"),
    ):
        checkpoint.read(WEIGHT)


def test_master_weights_stay_dense(folder):
    config = {"linear_class": "autobitlinear", "quantization_mode": "online"}
    path = folder({"model.safetensors": {WEIGHT: np.ones((4, 4), np.float16)}}, quantization_config=config)
    with formats.open(path) as checkpoint:
        assert isinstance(checkpoint.read(WEIGHT), DenseTensor) and checkpoint.read(WEIGHT).dtype == "F16"


SHARDS = {"s1.safetensors": {"a": np.ones(1, np.float32)}, "s2.safetensors": {"b": np.zeros(2, np.float32)}}


@pytest.mark.parametrize("opened", ["", "s1.safetensors"])
def test_shards_are_one_checkpoint_however_it_is_opened(folder, opened):
    path = folder(SHARDS, index={"a": "s1.safetensors", "b": "s2.safetensors"})
    with formats.open(path / opened) as checkpoint:
        assert list(checkpoint.tensors()) == ["a", "b"] and checkpoint.read("b").shape == (2,)


def test_a_scale_may_lie_in_another_shard(folder, packed):
    (weight, scale), codes = packed[1].items(), packed[0]
    path = folder({"s1.safetensors": dict([weight]), "s2.safetensors": dict([scale])})
    with formats.open(path) as checkpoint:
        assert (checkpoint.read(WEIGHT).codes == codes).all()


def test_a_file_outside_the_index_is_opened_alone(folder):
    path = folder(SHARDS | {"other.safetensors": {"c": np.ones(1, np.float32)}}, index={"a": "s1.safetensors"})
    assert list(formats.open(path / "other.safetensors").tensors()) == ["c"]


def test_a_missing_shard_is_named(folder):
    with pytest.raises(FormatError, match=r"lacks the shard s3.safetensors"):
        formats.open(folder(SHARDS, index={"a": "s1.safetensors", "z": "s3.safetensors"}))


@pytest.mark.parametrize(
    "index, says",
    [
        ({"a": "../s1.safetensors"}, "names the shard"),
        ({"a": "/etc/passwd"}, "names the shard"),
        ({"a": "pytorch_model.bin"}, "names the shard"),
        ({"a": 5}, "weight_map"),
        ([], "weight_map"),
        ({"z": "s1.safetensors"}, "z is not in s1.safetensors"),
        ({"b": "s1.safetensors", "a": "s2.safetensors"}, "is not in"),
    ],
)
def test_an_index_that_is_wrong_is_refused(folder, index, says):
    with pytest.raises(FormatError, match=says):
        formats.open(folder(SHARDS, index=index))


def test_a_tensor_in_two_shards_is_refused(folder):
    with pytest.raises(FormatError, match=r"a is in s1.safetensors and in s2.safetensors"):
        formats.open(folder({"s1.safetensors": {"a": np.ones(1)}, "s2.safetensors": {"a": np.ones(1)}}))


@pytest.mark.parametrize("config", [{"model_type": None}, {"model_type": ""}, {"model_type": 7}])
def test_a_folder_without_a_model_type_is_refused(folder, config):
    with pytest.raises(FormatError, match="model_type"):
        formats.open(folder(**config))


@pytest.mark.parametrize(
    "quantization, error",
    [
        ({"quant_method": "gptq"}, UnsupportedError),
        ({"quant_method": "bitnet", "linear_class": "other"}, UnsupportedError),
        ({"linear_class": ["x"]}, UnsupportedError),
        ("bitnet", FormatError),
    ],
)
def test_another_quantization_is_refused(folder, quantization, error):
    with pytest.raises(error, match="quanti"):
        formats.open(folder(quantization_config=quantization))


@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
def test_mlx_folders_are_refused_by_name(folder, key):
    with pytest.raises(UnsupportedError, match="(?s)MLX.*GGUF"):
        formats.open(folder(**{key: {"group_size": 128, "bits": 2}}))


def test_code_named_by_auto_map_is_not_run(folder):
    path = folder(auto_map={"AutoModel": "modeling_x.X"})
    (path / "modeling_x.py").write_text("raise SystemExit('executed')")
    assert formats.open(path).architecture == "bitnet"


def test_a_missing_tensor_is_named(folder):
    with formats.open(folder()) as checkpoint, pytest.raises(ShapeError, match="no tensor nope"):
        checkpoint.read("nope")
