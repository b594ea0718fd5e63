"""A model's hyper-parameters as the config.json of a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bitnet.convert.source import Source
from bitnet.errors import UnsupportedError
from bitnet.models.decoder import Config
from bitnet.models.metadata import Reader
from bitnet.models.rope_scaling import llama3

CLASSES = {
    "bitnet": ("BitNetForCausalLM", "bitnet"),
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
ACTIVATIONS = {"silu": "silu", "relu2": "relu2", "gelu": "gelu_pytorch_tanh"}
NAMES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def config_json(source: Source, dtype: str) -> dict[str, Any]:
    """dtype: of the embedding. A Hugging Face source keeps the entries that say something else."""
    config, checkpoint = source.config, source.checkpoint
    said = dict(checkpoint.metadata) if checkpoint.kind == "hf" else {}
    for key in ("auto_map", "quantization_config", "dtype", "torch_dtype"):
        said.pop(key, None)
    architecture, model_type = CLASSES[source.model]
    written = {
        **said,
        "architectures": [architecture],
        "model_type": model_type,
        **{name: getattr(config, name) for name in NAMES},
        "torch_dtype": DTYPES[dtype],
    }
    written["hidden_activation" if source.model == "gemma3" else "hidden_act"] = ACTIVATIONS[config.hidden_act]
    if checkpoint.kind == "gguf":
        written |= rotary(config) | (gemma3(config) if source.model == "gemma3" else {})
    kept = [f"model.{name}" for name in source.found if name.endswith("_proj") and name not in source.ternary]
    if any(name.endswith("_proj") for name in source.ternary):
        written["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "modules_to_not_convert": ["lm_head", *kept],
        }
        if config.input_norm_eps is not None:
            written["quantization_config"] |= {"use_rms_norm": True, "rms_norm_eps": config.input_norm_eps}
    return written


def gemma3(config: Config) -> dict[str, Any]:
    local = {"rope_type": "default", "rope_theta": config.local_rope_theta}
    full = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_factors is not None:
        full = scaling(config) | {"rope_theta": config.rope_theta}
    types = ["sliding_attention" if window else "full_attention" for window in config.windows]
    return {
        "sliding_window": max(config.windows, default=0) or config.max_position_embeddings,
        "layer_types": types or ["full_attention"] * config.num_hidden_layers,
        "rope_local_base_freq": config.local_rope_theta,
        "query_pre_attn_scalar": whole(config.query_pre_attn_scalar or config.head_dim),
        "rope_parameters": {"sliding_attention": local, "full_attention": full},
    }


def rotary(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_theta": config.rope_theta}
    if config.rope_factors is not None:
        values["rope_scaling"] = scaling(config)
    return values


def scaling(config: Config) -> dict[str, Any]:
    """The rule that gives these divisors; for llama3's, the trained context is sought among the powers of two."""
    if config.yarn:
        return {
            "rope_type": "yarn",
            "factor": config.yarn.factor,
            "original_max_position_embeddings": config.yarn.original_context,
            "attention_factor": config.yarn.attention_factor,
            "beta_fast": config.yarn.beta_fast,
            "beta_slow": config.yarn.beta_slow,
        }
    factors = config.rope_factors or (1.0,)
    if len(set(factors)) == 1:
        return {"rope_type": "linear", "factor": factors[0]}
    for trained in (1 << i for i in range(6, 22)):
        rule = {"rope_type": "llama3", "factor": max(factors), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rule["original_max_position_embeddings"] = trained
        found = llama3(Reader(Path("config.json"), rule), config.rope_theta, config.head_dim, trained)
        if np.allclose(found, factors, rtol=1e-6, atol=0):
            return rule
    raise UnsupportedError(
        "The divisors of this model's rotary frequencies follow no rule that config.json has a name for.",
        "Write a GGUF file, which holds them one by one.",
    )


def whole(number: float) -> int | float:
    """transformers takes an integer only as an integer."""
    return int(number) if number == int(number) else number
