"""Any checkpoint to a GGUF file, spelled as llama.cpp spells it; with I2_S weights, as bitnet.cpp does.

Tensors go through one at a time, so a model larger than the memory converts, and the file appears whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bitnet.errors import ParameterError, UnsupportedError
from bitnet.formats import Checkpoint, TensorSpec, write_gguf
from bitnet.models.decoder import Config
from bitnet.models.load import Progress, open_model, read_weight, resolve, ternary_names
from bitnet.models.names import spellings
from bitnet.quant.tensor import Array, DenseTensor, Tensor, TernaryTensor
from bitnet.tokenizer import Tokenizer

Weights = Literal["tq2_0", "tq1_0", "i2_s", "q2_0", "pq2_0", "ptq1_0", "iq2_bn", "iq1_bn"]
Embeddings = Literal["f16", "bf16", "f32", "q8_0", "q6_k", "q4_k"]
# `general.file_type`, as llama.h numbers them; 40 is bitnet.cpp's.
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "I2_S": 40, "Q2_0": 41}
# The first of each row is what `architecture=None` means. llama.cpp knows "bitnet" and gates it with SiLU;
# the others are bitnet.cpp's names for ReLU squared.
ARCHITECTURES = {
    ("bitnet", "relu2"): ("bitnet-b1.58", "bitnet-25"),
    ("bitnet", "silu"): ("bitnet",),
    ("llama", "silu"): ("llama",),
}


def write_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    weights: Weights = "tq2_0",
    embeddings: Embeddings = "f16",
    architecture: str | None = None,
    tokenizer: Tokenizer | None = None,
    progress: Progress = lambda done, total: None,
) -> None:
    """Write `checkpoint` as the GGUF file `path`.

    weights: the type of the ternary projections. TQ2_0 and TQ1_0 take rows in multiples of 256 and round the scale to
    float16; I2_S takes any row length, keeps the scale as float32, and is not read by llama.cpp.
    embeddings: the type of the embedding and the output head. Norms become F32; float projections stay as they are.
    architecture: `general.architecture`; None chooses by the model. llama.cpp knows "llama" and "bitnet", the latter
    with a tied output head only. tokenizer: None takes the checkpoint's own.

    Raises ParameterError where a choice does not fit the model, ModelError where the checkpoint cannot be read.
    """
    one_of("weights", weights, Weights)
    one_of("embeddings", embeddings, Embeddings)
    module, config, shapes = open_model(checkpoint)
    architecture = gguf_architecture(module.__name__.rpartition(".")[-1], config, architecture, checkpoint)
    found = resolve(checkpoint, shapes)
    infos, ternary = checkpoint.tensors(), ternary_names(checkpoint, found)
    dtypes = {
        name: weights.upper() if name in ternary else dense_type(name, infos[spelled].dtype, embeddings)
        for name, spelled in found.items()
    }
    specs = rope_specs(config)
    for name, spelled in found.items():
        load = partial(load_rows, checkpoint, spelled, name in ternary, interleaved_heads(name, config, architecture))
        specs.append(TensorSpec(spellings(name, "gguf")[0], shapes[name], dtypes[name], load))
    for done, spec in enumerate(specs):
        specs[done] = reporting(spec, progress, done, len(specs))
    metadata = {
        **general(checkpoint, architecture, dtypes["layers.0.mlp.down_proj"]),
        **hyperparameters(config, architecture),
        **(tokenizer or Tokenizer.from_checkpoint(checkpoint)).to_gguf(config.vocab_size),
    }
    write_gguf(path, metadata, specs)
    progress(len(specs), len(specs))


def one_of(name: str, value: str, known: Any) -> None:
    if value not in get_args(known):
        raise ParameterError(f"{name} is {value!r}; expected {', '.join(get_args(known))}.")


def gguf_architecture(model: str, config: Config, wanted: str | None, checkpoint: Checkpoint) -> str:
    """`general.architecture` for a model of this file and activation; `wanted` where it means the same."""
    known = ARCHITECTURES.get((model, config.hidden_act))
    if known is None:
        raise UnsupportedError(f"{checkpoint.path}: no GGUF architecture is {model} with {config.hidden_act}.")
    if wanted is not None and wanted not in known:
        raise ParameterError(
            f"architecture is {wanted!r}; this model is {model} with {config.hidden_act}: {' or '.join(known)}."
        )
    return wanted or known[0]


def dense_type(name: str, stored: str, embeddings: str) -> str:
    """The type of a tensor that is not ternary."""
    if name in ("embed_tokens", "lm_head"):
        return embeddings.upper()
    return stored if name.endswith("_proj") else "F32"


def interleaved_heads(name: str, config: Config, architecture: str) -> int:
    """How many heads of this matrix must be reordered for llama.cpp's rotary embedding; 0 where none.

    llama.cpp turns neighbours (2i, 2i + 1) in its llama architecture and halves (i, i + d/2) in bitnet.
    """
    if architecture != "llama" or config.rope_style == "interleaved":  # the source is such a file itself
        return 0
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(name.rpartition(".")[-1], 0)


def load_rows(checkpoint: Checkpoint, spelled: str, ternary: bool, heads: int) -> Tensor:
    tensor = read_weight(checkpoint, spelled, ternary)
    return interleave(tensor, heads) if heads else tensor


def interleave(tensor: Tensor, heads: int) -> Tensor:
    """Rows (i, i + d/2) of each head side by side."""

    def rows(array: Array) -> Array:
        halves = array.reshape(heads, 2, -1, *array.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)

    if isinstance(tensor, TernaryTensor):
        scales = rows(tensor.scales) if tensor.scales.ndim else tensor.scales
        return TernaryTensor(rows(tensor.codes), scales, tensor.weight_only)
    return DenseTensor(rows(tensor.data), tensor.dtype, None if tensor.scales is None else rows(tensor.scales))


def rope_specs(config: Config) -> list[TensorSpec]:
    """The tensor that holds the divisors of the rotary frequencies, where one number does not say them."""
    factors = config.rope_factors
    if factors is None or len(set(factors)) == 1:
        return []
    return [TensorSpec.of("rope_freqs.weight", DenseTensor(np.array(factors, np.float32)), "F32")]


def general(checkpoint: Checkpoint, architecture: str, dtype: str) -> dict[str, Any]:
    """What the file is; a GGUF source's own words on itself (name, author, license) are kept."""
    path = Path(checkpoint.path)
    said = {k: v for k, v in checkpoint.metadata.items() if k.startswith("general.") and isinstance(v, str)}
    return {
        "general.architecture": architecture,
        "general.name": path.stem if path.suffix == ".gguf" else path.name,
        **{key: value for key, value in said.items() if key != "general.architecture"},
        **({"general.file_type": FILE_TYPES[dtype]} if dtype in FILE_TYPES else {}),
        "general.quantization_version": 2,
    }


def hyperparameters(config: Config, architecture: str) -> Mapping[str, Any]:
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_dim,
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        values |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if config.rope_factors is not None and len(set(config.rope_factors)) == 1:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factors[0]}
    return {f"{architecture}.{key}": value for key, value in values.items()}


def reporting(spec: TensorSpec, progress: Progress, done: int, total: int) -> TensorSpec:
    """`spec`, telling `progress` when its turn comes."""

    def load() -> Tensor:
        progress(done, total)
        return spec.load()

    return TensorSpec(spec.name, spec.shape, spec.dtype, load)
