"""Damaged model files: a typed error or a sound tensor, never another exception, never slow, never large."""

import json
import struct
import tracemalloc

import numpy as np
import pytest

from bitnet import formats
from bitnet.errors import BitNetError
from bitnet.formats import TensorSpec, trits, write_gguf
from bitnet.formats.gguf_codecs import encode
from bitnet.formats.gguf_types import BY_NAME, READABLE
from bitnet.quant.blocks import BLOCKS
from bitnet.quant.tensor import DenseTensor, TernaryTensor

ROUNDS = 150
HEADER = 700  # bytes, about, in all files
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]
WORDS = [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]


def sound_gguf(path):
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (2, 256)).astype(np.int8)
    weight = TernaryTensor(codes, np.array(0.5, np.float32))
    metadata = {
        "general.architecture": "bitnet-b1.58",
        "bitnet-b1.58.block_count": 1,
        "tokenizer.ggml.tokens": ["a", "bé", ""],
        "tokenizer.ggml.scores": [0.5, 1.5, -1.0],
        "tokenizer.ggml.add_bos_token": True,
        "flags": [True, False],
    }
    specs = [TensorSpec.of(name.lower(), weight, name) for name in ("I2_S", "TQ1_0", "TQ2_0", "Q8_0", "F16")]
    write_gguf(path, metadata, [*specs, TensorSpec.of("norm", DenseTensor(np.ones(7, np.float32)), "F32")])


def sound_blocks(path):
    """A tensor of every other type that is read."""
    ones = TernaryTensor(np.ones((4, 256), np.int8), np.array(0.5, np.float32))
    types = [name for name in READABLE if name not in ("I2_S", "TQ1_0", "TQ2_0", "Q8_0", "F16", "F32", "TL1", "TL2")]
    infos, data = [], b""
    for kind in (BY_NAME[name] for name in types):
        name = kind.name.encode()
        infos.append(struct.pack("<Q", len(name)) + name + struct.pack("<IQQIQ", 2, 256, 4, kind.id, len(data)))
        size = kind.size((4, 256))
        stored = encode(ones, kind.name).tobytes() if kind.written else b"\x55" * size
        data += stored + bytes(-size % 32)
    key, value = b"general.architecture", b"x"
    pair = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, len(value)) + value
    header = b"GGUF" + struct.pack("<IQQ", 3, len(infos), 1) + pair + b"".join(infos)
    path.write_bytes(header + bytes(-len(header) % 32) + data)


def sound_safetensors(path):
    header = {
        "w": {"dtype": "U8", "shape": [2, 8], "data_offsets": [0, 16]},
        "w_scale": {"dtype": "BF16", "shape": [1], "data_offsets": [16, 18]},
        "norm": {"dtype": "F32", "shape": [2, 1], "data_offsets": [18, 26]},
    }
    text = json.dumps(header).encode()
    packed = trits.pack_rows(np.zeros((8, 8), np.int8))
    path.write_bytes(len(text).to_bytes(8, "little") + text + packed.tobytes() + b"\x80\x3f" + bytes(8))
    (path.parent / "config.json").write_text('{"model_type": "bitnet"}')


def damaged(data, rng, header):
    """`data` with one to four damages, most of them in the header."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, header if rng.random() < 0.8 else len(data)))
        match rng.integers(0, 5):
            case 0:
                data[at : at + 1] = bytes([rng.choice(INTERESTING)])
            case 1:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.integers(0, 8)]) if at < len(data) else b""
            case 2:
                data[at : at + 8] = WORDS[rng.integers(0, len(WORDS))].to_bytes(8, "little")
            case 3:
                del data[at : at + int(rng.integers(1, 40))]
            case 4:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
        if not data:
            return bytes(data)
        header = min(header, len(data))
    return bytes(data)


def read_everything(path):
    with formats.open(path) as checkpoint:
        for name, info in checkpoint.tensors().items():
            tensor = checkpoint.read(name)
            assert tensor.shape == info.shape
            if isinstance(tensor, TernaryTensor):
                assert np.abs(tensor.codes).max() <= 1 and np.isfinite(tensor.scales).all()
            elif tensor.dtype in BLOCKS:
                assert np.isfinite(tensor.dequantize()).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "make, name", [(sound_gguf, "m.gguf"), (sound_blocks, "m.gguf"), (sound_safetensors, "model.safetensors")]
)
def test_a_damaged_file_is_an_error_or_a_sound_tensor(tmp_path, make, name, seed):
    path = tmp_path / name
    make(path)
    read_everything(path)
    sound, rng = path.read_bytes(), np.random.default_rng(seed)
    tracemalloc.start()
    for _ in range(ROUNDS):
        data = damaged(sound, rng, min(HEADER, len(sound)))
        path.write_bytes(data)
        try:
            read_everything(path)
        except BitNetError as error:
            assert error.exit_code == 3 and len(str(error)) < 4000, data
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize("seed", range(2))
def test_noise_is_refused(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for length in (1, 4, 8, 23, 24, 25, 200, 5000):
        for head in (b"", b"GGUF", b"GGUF\x03\0\0\0", b"GGUF\x03\0\0\0\x01" + bytes(7) + b"\x01" + bytes(7)):
            (tmp_path / "m.gguf").write_bytes(head + rng.bytes(length))
            with pytest.raises(BitNetError):
                formats.open(tmp_path / "m.gguf")
