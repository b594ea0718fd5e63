"""Tiny models for tests: a checkpoint in memory, and a decoder run by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet import backends, formats, models
from bitnet.backends.base import Ops, Step
from bitnet.convert import write_checkpoint
from bitnet.formats import Checkpoint, TensorInfo
from bitnet.models import Decoder
from bitnet.models.decoder import Config
from bitnet.models.load import resolve
from bitnet.models.names import spellings
from bitnet.quant.rules import ternarize
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor
from bitnet.tokenizer import Tokenizer
from bitnet.tokenizer.byte_level import BYTE_TO_CHAR

Logits = NDArray[np.float32]
BITNET = {
    "model_type": "bitnet",
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
}
SILU = BITNET | {"hidden_act": "silu"}
LLAMA = BITNET | {"model_type": "llama", "hidden_act": "silu", "quantization_config": {"quant_method": "bitnet"}}


WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_hidden_layers": 2}  # rows that TQ2_0 takes
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS = {
    "bitnet-relu2": BITNET | WIDE,
    "bitnet-silu": SILU | WIDE,
    "llama": LLAMA | WIDE,
    "llama-untied": LLAMA | WIDE | {"tie_word_embeddings": False},
    "llama-head-dim": LLAMA | WIDE | {"head_dim": 128},
    "llama-llama3": LLAMA | WIDE | {"rope_scaling": LLAMA3_ROPE},
    "llama-linear": LLAMA | WIDE | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}


class Synthetic(Checkpoint):
    """A checkpoint in memory, spelled as a Hugging Face folder; `weights` may be changed before it is loaded."""

    kind = "hf"

    def __init__(self, metadata: Mapping[str, Any], weights: dict[str, Tensor] | None = None) -> None:
        self.path, self.metadata = Path("synthetic"), dict(metadata)
        self.architecture = metadata["model_type"]
        self.weights = weights if weights is not None else random_weights(self.metadata)

    def tensors(self) -> Mapping[str, TensorInfo]:
        def info(name: str, tensor: Tensor) -> TensorInfo:
            dtype = "packed" if isinstance(tensor, TernaryTensor) else tensor.dtype
            return TensorInfo(name, tensor.shape, dtype, 0)

        return {name: info(name, tensor) for name, tensor in self.weights.items()}

    def read(self, name: str) -> Tensor:
        return self.weights[name]


def random_weights(metadata: Mapping[str, Any], seed: int = 0, std: float = 0.5) -> dict[str, Tensor]:
    """Weights by Hugging Face's names: ternary projections, norms around 1, a float16 embedding."""
    random = np.random.default_rng(seed)
    empty = Synthetic(metadata, {})
    _, _, shapes = models.open_model(empty)
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        values = random.normal(0, std, shape).astype(np.float32)
        spelled = spellings(name, "hf")[0]
        if name.endswith("_proj"):
            weights[spelled] = ternarize(values)
        elif len(shape) == 1:
            weights[spelled] = DenseTensor(1 + np.float32(0.2) * values)
        else:
            weights[spelled] = DenseTensor(values.astype(np.float16), "F16")
    return weights


def tokenizer(vocab_size: int = 272) -> Tokenizer:
    """Byte-level, with a few merges; id 0 to 255 are the bytes in the order of GPT-2's alphabet."""
    merges = ["t h", "th e", "i n", "a n", "e r"]
    tokens = [*BYTE_TO_CHAR.values()] if isinstance(BYTE_TO_CHAR, dict) else [*BYTE_TO_CHAR]
    tokens += [merge.replace(" ", "") for merge in merges] + ["<s>", "</s>"]
    return Tokenizer.from_gguf(
        {
            "general.architecture": "tiny",
            "tiny.vocab_size": vocab_size,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "llama-bpe",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.bos_token_id": len(tokens) - 2,
            "tokenizer.ggml.eos_token_id": len(tokens) - 1,
            "tokenizer.ggml.add_bos_token": True,
        }
    )


def convert(source: Checkpoint, path: Path, **options: Any) -> Path:
    write_checkpoint(source, path, **{"embeddings": "f32", "tokenizer": tokenizer(), **options})
    return path


def load(source: Checkpoint | Path, ops: Ops | str = "reference") -> Decoder:
    if isinstance(source, Path):
        with formats.open(source) as checkpoint:
            return load(checkpoint, ops)
    return models.load(source, backends.make(ops) if isinstance(ops, str) else ops)


def config_of(source: Checkpoint) -> Config:
    return models.open_model(source)[1]


def found_names(source: Checkpoint) -> dict[str, str]:
    """Our name -> the file's."""
    return resolve(source, models.open_model(source)[2])


def new_cache(model: Decoder, tokens: int, dtype: str = "f32") -> Any:
    c = model.config
    return model.ops.new_cache(c.num_hidden_layers, -(-tokens // 16), c.num_key_value_heads, c.head_dim, dtype)


def logits(model: Decoder, ids: Sequence[int], kv: str = "f32") -> Logits:
    """Of every position, (T, vocab)."""
    return np.asarray(model(Step.whole(ids), new_cache(model, len(ids), kv)))


def greedy(model: Decoder, prompt: Sequence[int], count: int) -> list[int]:
    """The `count` likeliest tokens after `prompt`, each computed from the whole text anew."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits(model, ids)[-1].argmax()))
    return ids[len(prompt) :]


def usable_isas() -> list[str]:
    """The instruction sets of the C++ core that this machine runs; none where the core is not built."""
    try:
        from bitnet import _core
    except ImportError:
        return []
    return list(_core.isas())


def assert_same_logits(ours: Logits, theirs: Logits, tolerance: float, name: str) -> bool:
    """Both (T, vocab) from the same weights, by two programs that add float32 numbers in different orders.

    They agree to `tolerance`, except where that noise moves an activation over a rounding boundary, to the next of its
    255 levels: the logits of that token and of those that look back at it then differ by up to a few tenths. That is
    rare: at least a third of the rows must be free of it, where a wrong formula spoils all, or all but the first.
    Returns whether every row was.
    """
    errors = np.abs(ours - theirs).max(axis=1)
    clean = errors <= tolerance
    assert errors.max() < 0.5, f"{name}: largest difference of each row {errors}"
    assert clean.mean() >= 1 / 3, f"{name}: largest difference of each row {errors}"
    return bool(clean.all())


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Run with this instruction set; "reference" changes nothing."""
    if name == "reference":
        yield
        return
    from bitnet import _core

    before = _core.isa()
    _core.set_isa(name)
    try:
        yield
    finally:
        _core.set_isa(before)


def every_backend(make: Callable[[Ops], Any]) -> dict[str, Any]:
    """`make` on the reference and on the core with each instruction set, by its name; run what it made within `isa`."""
    results = {"reference": make(backends.make("reference"))}
    for name in usable_isas():
        with isa(name):
            results[name] = make(backends.make("cpu"))
    return results
