"""Models of a real shape with random weights, made in memory: what speed is measured on where no file is at hand.

Every tensor depends on its name and the seed alone, so that two machines measure, and compute, the same model.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ParameterError
from bitnet.formats.checkpoint import Checkpoint, TensorInfo
from bitnet.models.decoder import projection_shapes
from bitnet.models.load import open_model
from bitnet.models.names import spellings
from bitnet.quant.random import RandomTernary
from bitnet.quant.tensor import DenseTensor, Tensor

_PIECE = 1 << 20  # random bytes at a time: they stay in the processor's cache


def preset(model_type: str, sizes: tuple[int, int, int], heads: tuple[int, int, int], **rest: Any) -> dict[str, Any]:
    """A config.json. sizes: layers, hidden, ffn; heads: query heads, key-value heads, width of a head."""
    return {
        "model_type": model_type,
        "architectures": ["BitNetForCausalLM" if model_type == "bitnet" else "LlamaForCausalLM"],
        **dict(zip(("num_hidden_layers", "hidden_size", "intermediate_size"), sizes, strict=True)),
        **dict(zip(("num_attention_heads", "num_key_value_heads", "head_dim"), heads, strict=True)),
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5 if model_type == "bitnet" else 1e-6,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": model_type == "bitnet",
        **rest,
    }


_BITNET_CPP = {"rope_theta": 1e4, "vocab_size": 32002}  # shapes of microsoft/BitNet's generate-dummy-bitnet-model.py
_FALCON3 = {"rope_theta": 1000042.0, "vocab_size": 131072, "max_position_embeddings": 32768}
PRESETS: Mapping[str, dict[str, Any]] = {
    "tiny": preset("bitnet", (2, 256, 512), (4, 2, 64), hidden_act="relu2", rope_theta=1e4, vocab_size=320),
    "100M": preset("bitnet", (12, 768, 2048), (12, 4, 64), hidden_act="relu2", rope_theta=1e4, vocab_size=32002),
    "700M": preset("bitnet", (24, 1536, 4096), (16, 16, 96), rope_theta=1e4, vocab_size=32002),
    "1B": preset("bitnet", (24, 2048, 3584), (32, 32, 64), **_BITNET_CPP),
    "2B-4T": preset("bitnet", (30, 2560, 6912), (20, 5, 128), hidden_act="relu2", rope_theta=5e5, vocab_size=128256),
    "3B": preset("bitnet", (26, 3200, 8640), (32, 32, 100), rope_theta=1e4, vocab_size=32002),
    "8B": preset("llama", (32, 4096, 14336), (32, 8, 128), rope_theta=5e5, vocab_size=128256, rms_norm_eps=1e-5),
    "100B": preset("bitnet", (72, 8192, 45568), (64, 64, 128), **_BITNET_CPP),
    "Falcon3-1B": preset("llama", (18, 2048, 8192), (8, 4, 256), **_FALCON3),
    "Falcon3-3B": preset("llama", (22, 3072, 9216), (12, 4, 256), **_FALCON3),
    "Falcon3-7B": preset("llama", (28, 3072, 23040), (12, 4, 256), **_FALCON3),
    "Falcon3-10B": preset("llama", (40, 3072, 23040), (12, 4, 256), **_FALCON3),
}


class SyntheticCheckpoint(Checkpoint):
    """A random model that opens like a Hugging Face folder with packed weights.

    name: one of PRESETS, in any case. overrides: entries of config.json to change.
    """

    kind = "hf"

    def __init__(self, name: str, seed: int = 0, **overrides: Any) -> None:
        known = {each.lower(): each for each in PRESETS}
        if name.lower() not in known:
            raise ParameterError(f"There is no synthetic model {name!r}.", f"Known: {', '.join(PRESETS)}.")
        self.name, self.seed = known[name.lower()], seed
        self.path = Path(f"synthetic-{self.name}")
        self.metadata = {**PRESETS[self.name], **overrides}
        self.architecture = self.metadata["model_type"]
        self._tensors: dict[str, TensorInfo] = {}  # open_model asks for them before they are known
        _, config, shapes = open_model(self)
        self._ternary = set(projection_shapes(config))
        self._tensors = {spellings(each, self.kind)[0]: self._info(each, shape) for each, shape in shapes.items()}

    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def read(self, name: str) -> Tensor:
        """The tensor, the same at every call."""
        info = self._tensors[name]
        if info.dtype == "F32":
            return DenseTensor(np.ones(info.shape, np.float32))
        n, k = info.shape
        seed = zlib.crc32(name.encode())
        if info.dtype == "F16":
            random = np.random.SFC64([self.seed, seed])
            return DenseTensor(random_floats(random, n * k, k**-0.5).reshape(n, k), "F16")
        # k products of a code (variance 2 / 3) and an input of variance 1 then add up to variance 1.
        scale = np.float16((1.5 / k) ** 0.5)  # which every file type holds exactly
        return RandomTernary((n, k), self.seed << 32 | seed, float(scale))

    def _info(self, name: str, shape: tuple[int, ...]) -> TensorInfo:
        count = int(np.prod(shape))
        spelled = spellings(name, self.kind)[0]
        if name.split(".", 2)[-1] in self._ternary:
            return TensorInfo(spelled, shape, "packed", count // 4 + 4)
        dtype, width = ("F32", 4) if len(shape) == 1 else ("F16", 2)
        return TensorInfo(spelled, shape, dtype, width * count)


def random_floats(random: np.random.BitGenerator, count: int, deviation: float) -> NDArray[np.float16]:
    """`count` values evenly spread around 0 with this standard deviation, out of 256 different ones."""
    levels = ((np.arange(256) - 127.5) * (deviation / 73.9)).astype(np.float16)  # 0 to 255 deviate by 73.9
    values = np.empty(count, np.float16)
    for start in range(0, count, _PIECE):
        out = values[start : start + _PIECE]
        np.take(levels, random_bytes(random, len(out)), out=out, mode="clip")
    return values


def random_bytes(random: np.random.BitGenerator, count: int) -> NDArray[np.uint8]:
    return random.random_raw(-(-count // 8)).astype("<u8", copy=False).view(np.uint8)[:count]
