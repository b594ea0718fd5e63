"""Small model files of every kind, made by our own writers: what fuzzing starts from.

A case is one bytes object: a GGUF file, or the files of a Hugging Face folder with SEPARATOR between them.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import small_tokenizers
import tiny

from bitnet.convert.folder import write_folder
from bitnet.convert.gguf import write_checkpoint
from bitnet.formats import TensorSpec, write_gguf
from bitnet.formats.gguf_codecs import encode
from bitnet.formats.gguf_types import BY_NAME, READABLE
from bitnet.quant.tensor import DenseTensor, TernaryTensor
from bitnet.tokenizer import Tokenizer

SEPARATOR = b"\n-- next file --\n"
FOLDER = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "more.safetensors",
)
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 4, "vocab_size": 12}
SIZES = {
    "bitnet": tiny.BITNET | SMALL,
    "bitnet-silu": tiny.SILU | SMALL,
    "llama": tiny.LLAMA | SMALL | {"tie_word_embeddings": False},
    "llama-linear": tiny.LLAMA | SMALL | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "llama-llama3": tiny.LLAMA | SMALL | {"rope_scaling": tiny.LLAMA3_ROPE},
    "qwen3": tiny.LLAMA | SMALL | {"model_type": "qwen3"},
    "gemma3": tiny.BITNET
    | SMALL
    | {"model_type": "gemma3_text", "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4, "sliding_window_pattern": 2}
    | {"num_hidden_layers": 2},
}


LARGE = 1 << 16  # bytes; TL1 and TL2 know only matrices that take more


def corpus() -> dict[str, bytes]:
    """Every case by its name."""
    with tempfile.TemporaryDirectory() as folder:
        return dict(_cases(Path(folder)))


def _cases(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name, config in SIZES.items():
        model = tiny.Synthetic(config)
        write_checkpoint(model, folder / "m.gguf", weights="i2_s", embeddings="f16", tokenizer=_letters())
        yield f"model-{name}", (folder / "m.gguf").read_bytes()
        write_folder(model, folder / name, tokenizer=_letters())
        yield f"folder-{name}", joined(*((folder / name / file) for file in FOLDER))
    yield "shards", _shards(folder / "bitnet")
    for kind, (make, settings) in small_tokenizers.KINDS.items():
        saved = small_tokenizers.save(make(), folder / f"tokenizer-{kind}", settings)
        (saved / "config.json").write_text('{"model_type": "llama"}')
        yield f"tokenizer-{kind}", joined(*((saved / file) for file in FOLDER))
        metadata = {"general.architecture": "llama", **Tokenizer.from_folder(saved).to_gguf()}
        write_gguf(folder / "t.gguf", metadata, [])
        yield f"metadata-{kind}", (folder / "t.gguf").read_bytes()
    for dtype in READABLE:
        yield f"type-{dtype}", _gguf_of_type(dtype)
    yield "values", _every_value(folder / "v.gguf")
    yield "rotated", _rotated(folder / "r.gguf")


def joined(*files: Path) -> bytes:
    return SEPARATOR.join(file.read_bytes() if file.is_file() else b"" for file in files)


def _letters() -> Tokenizer:
    metadata = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*"abcdefg", "ab", "<s>", "</s>"],
        "token_type": [1] * 8 + [3, 3],
        "merges": ["a b"],
        "bos_token_id": 8,
        "eos_token_id": 9,
    }
    return Tokenizer.from_gguf({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


def _shards(folder: Path) -> bytes:
    """The folder with its norm in a second file, and an index."""
    size = 16 * 4
    line = {"model.norm.weight": {"dtype": "F32", "shape": [16], "data_offsets": [0, size]}}
    text = json.dumps(line).encode()
    second = len(text).to_bytes(8, "little") + text + np.ones(16, "<f4").tobytes()
    first = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(first[:8], "little")
    header: dict[str, Any] = json.loads(first[8 : 8 + length])
    start, end = header.pop("model.norm.weight")["data_offsets"]
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [at - (end - start) for at in entry["data_offsets"]]
    data = first[8 + length :]
    text = json.dumps(header).encode()
    names = [name for name in header if name != "__metadata__"]
    index = {"weight_map": dict.fromkeys(names, FOLDER[4]) | {"model.norm.weight": FOLDER[5]}}
    files = [(folder / name).read_bytes() for name in FOLDER[:3]]
    files += [json.dumps(index).encode(), len(text).to_bytes(8, "little") + text + data[:start] + data[end:], second]
    return SEPARATOR.join(files)


def _gguf_of_type(dtype: str) -> bytes:
    """A file with one matrix of the type, as wide as three of its blocks where that is allowed, and a vector."""
    kind, shape = BY_NAME[dtype], (4, 768)
    if dtype in ("TL1", "TL2"):
        shape = (1536, 1536)
    data = bytes(kind.size(shape) + kind.behind)
    if kind.written:
        weight: Any = TernaryTensor(np.ones(shape, np.int8), np.array(0.5, np.float32))
        data = encode(weight if kind.use == "ternary" else DenseTensor(weight.dequantize()), dtype).tobytes()
    data += bytes(-len(data) % 32)
    infos = [("w", shape[::-1], kind.id, 0), ("norm", (7,), 0, len(data))]
    return bare_gguf([("general.architecture", "x")], infos, data + np.ones(7, "<f4").tobytes())


def bare_gguf(
    texts: Sequence[tuple[str, str]], infos: Sequence[tuple[str, tuple[int, ...], int, int]], data: bytes
) -> bytes:
    """texts: metadata. infos: name, dimensions from the innermost, type, offset."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    parts = [b"GGUF", struct.pack("<IQQ", 3, len(infos), len(texts))]
    parts += [string(key) + struct.pack("<I", 8) + string(value) for key, value in texts]
    parts += [
        string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, at) for name, dims, kind, at in infos
    ]
    header = b"".join(parts)
    return header + bytes(-len(header) % 32) + data


def _every_value(path: Path) -> bytes:
    scalars: list[Callable[..., Any]] = [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32]
    scalars += [np.uint64, np.int64, np.float32, np.float64, np.bool_]
    metadata: dict[str, Any] = {"general.architecture": "x", "texts": ["", "é", "\0"]}
    for i, make in enumerate(scalars):
        metadata |= {f"scalar.{i}": make(1), f"array.{i}": np.ones(3, make)}
    write_gguf(path, metadata, [TensorSpec.of("w", DenseTensor(np.ones((2, 3, 4), np.float32)), "F16")])
    return path.read_bytes()


def _rotated(path: Path) -> bytes:
    write = partial(write_checkpoint, tiny.Synthetic(SIZES["qwen3"]), path, embeddings="f16", tokenizer=_letters())
    write(weights="i2_s")
    whole = path.read_bytes()
    prism = {
        "version": 1,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "block_size": 8,
        "sign_mode": "explicit",
        "sign_widths": [16],
        "sign_values": [1, -1] * 8,
        "weight_names": ["blk.0.attn_q.weight"],
        "inverse_weight_names": ["token_embd.weight"],
    }
    write_gguf(path, {f"prism.hadamard.{key}": value for key, value in prism.items()}, [])
    return with_pairs(whole, path.read_bytes())


def with_pairs(whole: bytes, other: bytes) -> bytes:
    """`whole` with the metadata of the GGUF file `other` in front of its own."""
    from fuzz_mutation import GGUFParts

    parts, more = GGUFParts.of(whole), GGUFParts.of(other)
    parts.pairs[:0] = [pair for pair in more.pairs if pair[0] != b"general.alignment"]
    return parts.whole()
