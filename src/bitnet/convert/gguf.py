"""Any checkpoint to a GGUF file, spelled as llama.cpp spells it; with I2_S weights, as bitnet.cpp does.

Rows go through a block at a time, so a model larger than the memory converts, and the file appears whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from bitnet.convert.losses import Losses
from bitnet.convert.source import Rounding, Source
from bitnet.errors import ParameterError, UnsupportedError
from bitnet.formats import Checkpoint, TensorSpec, write_gguf
from bitnet.formats.gguf_types import BY_NAME, TERNARY
from bitnet.formats.gguf_writer import Block
from bitnet.models.decoder import Config
from bitnet.models.hyperparameters import INPUT_NORM_EPS, KEPT, gemma3_layer_types
from bitnet.models.load import Progress
from bitnet.models.names import spellings
from bitnet.models.pooling import GGUF_TYPES, said_pooling
from bitnet.models.rope_scaling import Yarn, usual_attention_factor
from bitnet.models.rotation import PREFIX
from bitnet.quant.tensor import DenseTensor
from bitnet.tokenizer import Tokenizer

Weights = Literal["i2_s", "tq2_0", "tq1_0", "q2_0", "pq2_0", "ptq1_0", "q1_0", "iq1_bn", "iq2_bn"]
Embeddings = Literal["f16", "bf16", "f32", "q8_0", "q6_k", "q4_k"]
# `general.file_type`, as llama.h numbers them; I2_S has bitnet.cpp's number, which llama.cpp gave to Q1_0 later.
FILE_TYPES = {
    "F32": 0, "F16": 1, "Q8_0": 7, "Q4_K": 14, "Q6_K": 18, "BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "I2_S": 40, "Q1_0": 40
}  # fmt: skip
# What a tensor becomes that is to keep its type, where that type is not written here.
KEPT_AS = {"packed": "I2_S", "TL1": "I2_S", "TL2": "I2_S", "IQ2_BN_R4": "IQ2_BN"}
# The first of each row is what `architecture=None` means. llama.cpp knows "bitnet" and gates it with SiLU;
# the others are bitnet.cpp's names for ReLU squared.
ARCHITECTURES = {
    ("bitnet", "relu2"): ("bitnet-b1.58", "bitnet-25"),
    ("bitnet", "silu"): ("bitnet",),
    ("llama", "silu"): ("llama",),
    ("qwen3", "silu"): ("qwen3",),
    ("gemma3", "gelu"): ("gemma3",),
}


def write_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    weights: Weights | None = "tq2_0",
    embeddings: Embeddings | None = None,
    head: Embeddings | None = None,
    architecture: str | None = None,
    tokenizer: Tokenizer | None = None,
    rounding: Rounding | None = None,
    progress: Progress = lambda done, total: None,
) -> Losses:
    """Write `checkpoint` as the GGUF file `path`; returns what could not be kept exactly.

    weights: the type of the ternary tensors; None keeps that of a GGUF file and makes I2_S of others. TQ2_0 and TQ1_0
    take rows in multiples of 256 and round the scale to float16; I2_S takes any row length, keeps one scale for the
    tensor as float32, and is not read by llama.cpp.
    embeddings, head: the types of the embedding and the output head; None keeps them (head: as the embeddings, where
    only these are given). Norms become F32; float projections stay as they are.
    architecture: `general.architecture`; None chooses by the model. llama.cpp knows "llama" and "bitnet", the latter
    with a tied output head only. tokenizer: None takes the checkpoint's own.
    rounding: makes float projections ternary, see Source. progress: called with bytes done and bytes in all.

    Raises ParameterError where a choice does not fit the model, ModelError where the checkpoint cannot be read.
    """
    for option, value, known in (
        ("weights", weights, Weights),
        ("embeddings", embeddings, Embeddings),
        ("head", head, Embeddings),
    ):
        if value is not None:
            one_of(option, value, known)
    source, losses = Source(checkpoint, rounding), Losses()
    config = source.config
    architecture = gguf_architecture(source.model, config, architecture, checkpoint)
    tables = table_types(source, embeddings, head)
    dtypes = {name: target_type(source, name, weights, tables) for name in source.found}
    specs = rope_specs(config)
    for name in source.found:
        blocks = partial(
            target_blocks, source, name, dtypes[name], interleaved_heads(name, config, architecture), losses
        )
        specs.append(TensorSpec(spellings(name, "gguf")[0], source.shape(name), dtypes[name], blocks))
    metadata = {
        **general(checkpoint, architecture, dtypes["layers.0.mlp.down_proj"]),
        **hyperparameters(config, architecture, said_pooling(checkpoint)),
        **kept_projections(source, dtypes),
        **rotation(source),
        **(tokenizer or Tokenizer.from_checkpoint(checkpoint)).to_gguf(config.vocab_size),
    }
    write_gguf(path, metadata, specs, progress)
    return losses


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
    kept = checkpoint.architecture if checkpoint.kind == "gguf" and checkpoint.architecture in known else known[0]
    return wanted or kept


def table_types(source: Source, embeddings: str | None, head: str | None) -> dict[str, str]:
    """What was asked for the embedding and the head."""
    head = head or embeddings
    if "lm_head" not in source.found:
        if embeddings and head != embeddings:
            raise ParameterError(
                f"The output head of this model is its embedding: it cannot be {head} and {embeddings}.",
                "Give one of --head and --embeddings.",
            )
        embeddings = head
    asked = {"embed_tokens": embeddings, "lm_head": head}
    return {name: value.upper() for name, value in asked.items() if value}


def target_type(source: Source, name: str, weights: str | None, tables: Mapping[str, str]) -> str:
    stored = source.dtype(name)
    if name in tables:
        return tables[name]
    if len(source.shape(name)) == 1:
        return "F32"
    if name not in source.ternary:
        return stored
    if weights:
        return weights.upper()
    return KEPT_AS.get(stored, stored if stored in TERNARY else "I2_S")


def target_blocks(source: Source, name: str, dtype: str, heads: int, losses: Losses) -> Iterator[Block]:
    """The tensor's blocks, in steps that `dtype` can store alone; `losses` sees what it does to them."""
    step = BY_NAME[dtype].row_step(source.shape(name)) if dtype in BY_NAME else 1
    seen = losses.watch(source.found[name], source.dtype(name), dtype)
    return (partial(seen, block) for block in source.blocks(name, step, heads))


def interleaved_heads(name: str, config: Config, architecture: str) -> int:
    """How many heads of this matrix must be reordered for llama.cpp's rotary embedding; 0 where none.

    llama.cpp turns neighbours (2i, 2i + 1) in its llama architecture and halves (i, i + d/2) in the others.
    """
    if architecture != "llama" or config.rope_style == "interleaved":  # the source is such a file itself
        return 0
    return rotated_heads(name, config)


def rotated_heads(name: str, config: Config) -> int:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(name.rpartition(".")[-1], 0)


def rope_specs(config: Config) -> list[TensorSpec]:
    """The tensor that holds the divisors of the rotary frequencies, where one number does not say them."""
    factors = config.rope_factors
    if factors is None or config.yarn or len(set(factors)) == 1:
        return []
    return [TensorSpec.of("rope_freqs.weight", DenseTensor(np.array(factors, np.float32)), "F32")]


def general(checkpoint: Checkpoint, architecture: str, dtype: str) -> dict[str, Any]:
    """What the file is; a GGUF source's own words on itself (name, author, license) are kept."""
    path = Path(checkpoint.path)
    said = {k: v for k, v in checkpoint.metadata.items() if k.startswith("general.") and isinstance(v, str)}
    written: dict[str, Any] = {
        "general.architecture": architecture,
        "general.name": path.stem if path.suffix == ".gguf" else path.name,
        **{key: value for key, value in said.items() if key != "general.architecture"},
        "general.quantization_version": 2,
    }
    if dtype in FILE_TYPES:
        written["general.file_type"] = FILE_TYPES[dtype]
    return written


def hyperparameters(config: Config, architecture: str, pooling: str = "none") -> Mapping[str, Any]:
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
    if config.yarn:
        values |= yarn(config.yarn)
    elif config.rope_factors is not None and len(set(config.rope_factors)) == 1:
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factors[0]}
    if config.input_norm_eps not in (None, config.rms_norm_eps):
        values[INPUT_NORM_EPS] = config.input_norm_eps
    if any(config.windows):
        values |= {"attention.sliding_window": max(config.windows), "rope.freq_base_swa": config.local_rope_theta}
        if [not window for window in config.windows] != gemma3_layer_types(config.num_hidden_layers):
            values["attention.sliding_window_pattern"] = [bool(window) for window in config.windows]
    if config.query_pre_attn_scalar not in (0, config.head_dim):
        values["query_pre_attn_scalar"] = config.query_pre_attn_scalar
    if pooling in GGUF_TYPES and pooling != "none":
        values["pooling_type"] = GGUF_TYPES.index(pooling)
    return {f"{architecture}.{key}": value for key, value in values.items()}


def yarn(rule: Yarn) -> dict[str, Any]:
    """llama.cpp multiplies the usual attention factor by one of the file's own."""
    values: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": rule.factor,
        "rope.scaling.original_context_length": rule.original_context,
    }
    own = rule.attention_factor / usual_attention_factor(rule.factor)
    if abs(own - 1) > 1e-9:
        values["rope.scaling.attn_factor"] = own
    if (rule.beta_fast, rule.beta_slow) != (32.0, 1.0):
        values |= {"rope.scaling.yarn_beta_fast": rule.beta_fast, "rope.scaling.yarn_beta_slow": rule.beta_slow}
    return values


def kept_projections(source: Source, dtypes: Mapping[str, str]) -> dict[str, Any]:
    """The float projections of a model whose others are ternary: without this, loading would round them too."""
    projections = [name for name in source.found if name.endswith("_proj")]
    kept = [name for name in projections if name not in source.ternary]
    return {KEPT: kept} if 0 < len(kept) < len(projections) else {}


def rotation(source: Source) -> dict[str, Any]:
    """The Hadamard metadata, with the names that the tensors have in the new file."""
    ours = {spelled: name for name, spelled in source.found.items()}
    said = {key: value for key, value in source.checkpoint.metadata.items() if key.startswith(PREFIX)}
    for key in (f"{PREFIX}weight_names", f"{PREFIX}inverse_weight_names"):
        if key in said:
            said[key] = [spellings(ours[spelled], "gguf")[0] for spelled in said[key]]
    return {key: value for key, value in said.items() if not (isinstance(value, list) and not value)}
