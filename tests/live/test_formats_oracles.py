"""Our bytes against the other implementations: gguf (NumPy), transformers and safetensors (torch)."""

import json

import numpy as np
import pytest

from bitnet import formats
from bitnet.formats import TensorSpec, trits, write_gguf
from bitnet.formats.gguf_codecs import decode, encode
from bitnet.formats.gguf_types import BY_NAME
from bitnet.quant.blocks import BLOCKS
from bitnet.quant.tensor import DenseTensor, TernaryTensor


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf")


def ternary(n, k, scales=0.5):
    codes = np.random.default_rng(n * k).integers(-1, 2, (n, k)).astype(np.int8)
    return TernaryTensor(codes, np.asarray(scales, np.float32))


@pytest.mark.parametrize("dtype", ["TQ1_0", "TQ2_0"])
@pytest.mark.parametrize("scales", [0.5, [[0.5, 0.25], [1, 3], [2, 1.5]]])
def test_ternary_bytes_are_those_of_gguf(gguf, dtype, scales):
    tensor, kind = ternary(3, 512, scales), gguf.GGMLQuantizationType[dtype]
    data = encode(tensor, dtype)
    assert (data == gguf.quants.quantize(tensor.dequantize(), kind).reshape(-1)).all()
    assert (gguf.quants.dequantize(data.reshape(3, -1), kind) == tensor.dequantize()).all()


def test_every_byte_of_tq1_0_means_what_it_means_to_gguf(gguf):
    """Also those that are not a multiple of 1 / 243, which no writer makes."""
    blocks = np.random.default_rng(0).integers(0, 256, (64, 54)).astype(np.uint8)
    blocks[:, 52:] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    ours = decode(blocks.reshape(-1), (64, 256), "TQ1_0").dequantize()
    assert (ours == gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.TQ1_0)).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0"])
def test_float_bytes_are_those_of_gguf(gguf, dtype):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((33, 96)) * 10 ** rng.uniform(-6, 3, (33, 1))).astype(np.float32)
    values[3] = 0
    kind = gguf.GGMLQuantizationType[dtype]
    theirs = gguf.quants.quantize(values, kind)
    data = encode(DenseTensor(values), dtype)
    assert (data == theirs.reshape(-1).view(np.uint8)).all()
    assert (decode(data, values.shape, dtype).dequantize() == gguf.quants.dequantize(theirs, kind)).all()


@pytest.mark.parametrize("dtype", sorted(BLOCKS))
def test_any_block_means_what_it_means_to_gguf(gguf, dtype):
    rng, kind = np.random.default_rng(0), BLOCKS[dtype]
    data = rng.integers(0, 256, (9, 2 * kind.nbytes)).astype(np.uint8)
    view = data.reshape(-1).view(kind.layout)
    for name in {"d", "dmin"} & {*view.dtype.names}:
        view[name] = rng.standard_normal(len(view)).astype(np.float16)
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[dtype])
    assert (decode(data.reshape(-1), (9, 2 * kind.weights), dtype).dequantize() == theirs).all()


def test_sizes_are_those_of_gguf(gguf):
    known = {kind.name: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    ours = {name: (kind.block, kind.nbytes) for name, kind in BY_NAME.items() if name in known}
    assert ours == {name: known[name] for name in ours} and len(ours) > 20
    assert all(gguf.GGMLQuantizationType[name] == BY_NAME[name].id for name in ours)


METADATA = {
    "general.architecture": "bitnet-b1.58",
    "general.quantization_version": 2,
    "bitnet-b1.58.rope.freq_base": 500000.0,
    "tokenizer.ggml.tokens": ["a", "é", ""],
    "tokenizer.ggml.token_type": [1, 1, 3],
    "tokenizer.ggml.scores": [0.5, -1.0, 0.0],
    "tokenizer.ggml.add_bos_token": True,
    "negative": -5,
    "large": 1 << 40,
}


def test_gguf_reads_what_we_write(gguf, tmp_path):
    tensors = {name: ternary(3, 512) for name in ("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0")}
    specs = [TensorSpec.of(name, tensor, name) for name, tensor in tensors.items()]
    write_gguf(tmp_path / "m.gguf", METADATA, specs)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {key: reader.fields[key].contents() for key in METADATA} == METADATA
    for tensor, spec in zip(reader.tensors, specs, strict=True):
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(3, 512)
        assert tensor.name == spec.name and (tensor.tensor_type.name, tuple(tensor.shape)) == (spec.name, (512, 3))
        assert np.abs(values - tensors[spec.name].dequantize()).max() < 1e-3


def test_we_read_what_gguf_writes(gguf, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "bitnet-b1.58")
    writer.add_block_count(3)
    writer.add_token_list(["a", "é"])
    writer.add_token_types([1, 3])
    writer.add_add_bos_token(True)
    tensor = ternary(4, 512)
    writer.add_tensor("norm", np.arange(5, dtype=np.float32))
    for dtype in ("TQ1_0", "TQ2_0"):
        kind = gguf.GGMLQuantizationType[dtype]
        writer.add_tensor(dtype, gguf.quants.quantize(tensor.dequantize(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with formats.open(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.metadata["tokenizer.ggml.tokens"] == ["a", "é"]
        assert checkpoint.metadata["tokenizer.ggml.token_type"] == [1, 3]
        assert checkpoint.read("norm").data.tolist() == [0, 1, 2, 3, 4]
        for dtype in ("TQ1_0", "TQ2_0"):
            assert (checkpoint.read(dtype).codes == tensor.codes).all() and checkpoint.read(dtype).scales == 0.5


def test_packed_rows_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.integrations.bitnet")
    codes = ternary(12, 70).codes
    packed = theirs.pack_weights(torch.from_numpy(codes.copy()))
    assert (trits.pack_rows(codes) == packed.numpy()).all()
    assert (trits.unpack_rows(packed.numpy()) == codes).all()


@pytest.mark.parametrize("linear_class", ["bitlinear", "autobitlinear"])
def test_a_packed_layer_multiplies_as_in_transformers(tmp_path, linear_class):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.integrations.bitnet")
    from safetensors.torch import save_file

    codes, scale = ternary(8, 64).codes, torch.tensor([1.75], dtype=torch.bfloat16)
    packed = theirs.pack_weights(torch.from_numpy(codes.copy()))
    save_file({"l.weight": packed, "l.weight_scale": scale}, tmp_path / "model.safetensors")
    config = {"model_type": "bitnet", "quantization_config": {"quant_method": "bitnet", "linear_class": linear_class}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    layer_class = theirs.BitLinear if linear_class == "bitlinear" else theirs.AutoBitLinear
    layer = layer_class(64, 8, bias=False, dtype=torch.float32)
    weight = packed if linear_class == "bitlinear" else theirs.unpack_weights(packed, torch.float32)
    layer.load_state_dict({"weight": weight, "weight_scale": scale.float()})
    x = torch.randint(-127, 128, (5, 64)).float()
    x[:, 0] = 127  # integers whose absmax is 127 pass the activation quantiser unchanged
    with formats.open(tmp_path) as checkpoint:
        weight = torch.from_numpy(checkpoint.read("l.weight").dequantize())
    torch.testing.assert_close(x @ weight.T, layer(x), rtol=1e-6, atol=1e-4)


def test_bf16_of_safetensors_for_torch_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    values = torch.randn(7, 5, dtype=torch.bfloat16)
    save_file({"w": values}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bitnet"}')
    with formats.open(tmp_path) as checkpoint:
        assert (checkpoint.read("w").dequantize() == values.float().numpy()).all()
