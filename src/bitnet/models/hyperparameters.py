"""From a file's metadata to a Config, checked before anything is sized by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.checkpoint import Checkpoint
from bitnet.models.decoder import Config
from bitnet.models.metadata import LIMITS, Reader
from bitnet.models.rope_scaling import gguf_scaling, hf_scaling

# What Hugging Face's configuration classes assume where config.json is silent.
GEMMA3 = {"hidden_act": "gelu_pytorch_tanh", "rope_theta": 1e6, "rms_norm_eps": 1e-6, "head_dim": 256}
HF_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "bitnet": {"hidden_act": "relu2", "rope_theta": 500000.0, "rms_norm_eps": 1e-5},
    "llama": {"hidden_act": "silu", "rope_theta": 10000.0, "rms_norm_eps": 1e-6},
    "qwen3": {"hidden_act": "silu", "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "head_dim": 128},
    "gemma3_text": GEMMA3,
}
# GELU here is the tanh form; the exact one is another function.
ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu2": "relu2", "gelu_pytorch_tanh": "gelu"}
UNKNOWN_SWITCHES = (  # entries of config.json that change what is computed
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "use_sliding_window",
)
POSITIVE = ("rms_norm_eps", "input_norm_eps", "rope_theta", "local_rope_theta", "query_pre_attn_scalar")
# Entries of GGUF files that only this program writes, where the others' say too little: the epsilon of the norms before
# projections where it is another than the model's, and our names of the projections that are float beside ternary ones.
INPUT_NORM_EPS = "attention.input_norm_rms_epsilon"
KEPT = "bitnet.modules_to_not_convert"
GGUF_ACTIVATIONS = {"bitnet-b1.58": "relu2", "bitnet-25": "relu2", "gemma3": "gelu"}  # the others: silu


def read_config(checkpoint: Checkpoint) -> Config:
    """The hyper-parameters of a checkpoint; FormatError names the one that is missing or absurd."""
    config = from_gguf(checkpoint) if checkpoint.kind == "gguf" else from_hf(checkpoint)
    if config.num_attention_heads % config.num_key_value_heads:
        raise FormatError(
            f"{checkpoint.path}: {config.num_attention_heads} attention heads cannot share "
            f"{config.num_key_value_heads} key-value heads evenly."
        )
    if config.head_dim % 2:
        raise FormatError(f"{checkpoint.path}: head_dim is {config.head_dim}; rotary embedding needs an even one.")
    for name in POSITIVE:
        value = getattr(config, name)
        absent = value is None or (name == "query_pre_attn_scalar" and value == 0)
        if not absent and not (math.isfinite(value) and value > 0):
            raise FormatError(f"{checkpoint.path}: {name} is {value}; expected a positive number.")
    factors = config.rope_factors
    if factors is not None and (len(factors) != config.head_dim // 2 or not all(0 < f < math.inf for f in factors)):
        raise FormatError(
            f"{checkpoint.path}: the {len(factors)} divisors of the rotary frequencies begin with {factors[:3]}; "
            f"head_dim {config.head_dim} needs {config.head_dim // 2} positive ones."
        )
    return config


def from_gguf(checkpoint: Checkpoint) -> Config:
    arch, tensors = checkpoint.architecture, checkpoint.tensors()
    get = Reader(checkpoint.path, checkpoint.metadata, prefix=f"{arch}.")
    hidden, heads = get.size("hidden_size", "embedding_length"), get.size("num_attention_heads", "attention.head_count")
    eps = get.number("attention.layer_norm_rms_epsilon")
    if "token_embd.weight" not in tensors:
        raise FormatError(f"{checkpoint.path}: there is no tensor token_embd.weight.")
    head_dim = get.size("head_dim", "attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if get.integer(key, head_dim) != head_dim:
            raise UnsupportedError(
                f"{checkpoint.path}: {arch}.{key} is {get.integer(key)} and the heads are {head_dim} wide; "
                f"only heads that are turned whole, with values as wide as keys, are supported."
            )
    theta, context = get.number("rope.freq_base", 10000.0), get.size("max_position_embeddings", "context_length")
    factors, yarn = gguf_scaling(get, theta, head_dim, context)
    if "rope_freqs.weight" in tensors:
        shape = tensors["rope_freqs.weight"].shape
        if len(shape) != 1:
            raise FormatError(f"{checkpoint.path}: the divisors of the rotary frequencies have the shape {shape}.")
        factors = tuple(float(f) for f in checkpoint.read("rope_freqs.weight").dequantize())
    return Config(
        hidden_size=hidden,
        intermediate_size=get.size("intermediate_size", "feed_forward_length"),
        num_hidden_layers=get.size("num_hidden_layers", "block_count"),
        num_attention_heads=heads,
        num_key_value_heads=get.size("num_key_value_heads", "attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=tensors["token_embd.weight"].shape[0],
        max_position_embeddings=context,
        rms_norm_eps=eps,
        rope_theta=theta,
        hidden_act=GGUF_ACTIVATIONS.get(arch, "silu"),
        tie_word_embeddings="output.weight" not in tensors,
        # llama.cpp's converter permutes q and k of this architecture, so that pairs lie side by side.
        rope_style="interleaved" if arch == "llama" else "neox",
        rope_factors=factors,
        yarn=yarn,
        input_norm_eps=get.number(INPUT_NORM_EPS, eps) if any(n.endswith("_norm_in.weight") for n in tensors) else None,
        **(gemma3_gguf(get) if arch == "gemma3" else {}),
    )


def gemma3_gguf(get: Reader) -> dict[str, Any]:
    """Gemma's window and scale. Every sixth layer looks at everything where the file says nothing else; the base of
    the other layers' frequencies is written by newer converters only."""
    window, layers = get.integer("attention.sliding_window", 0), get.size("num_hidden_layers", "block_count")
    if not 0 <= window <= LIMITS["max_position_embeddings"]:
        raise FormatError(f"{get.path}: {get.prefix}attention.sliding_window is {window}; expected 0 or more.")
    full = gemma3_layer_types(layers)
    pattern = get.values.get(f"{get.prefix}attention.sliding_window_pattern")
    if isinstance(pattern, list):
        if len(pattern) != layers or not all(isinstance(each, bool) for each in pattern):
            raise FormatError(f"{get.path}: sliding_window_pattern is {pattern!r:.100}; expected {layers} booleans.")
        full = [not each for each in pattern]
    elif pattern is not None:
        period = get.integer("attention.sliding_window_pattern")
        full = gemma3_layer_types(layers, period) if period > 0 else [False] * layers
    return {
        "windows": tuple(0 if whole else window for whole in full) if window else (),
        "local_rope_theta": get.number("rope.freq_base_swa", 10000.0),
        "query_pre_attn_scalar": get.number("query_pre_attn_scalar", 0.0),
    }


def gemma3_layer_types(layers: int, period: int = 6) -> list[bool]:
    """For each layer whether it looks at everything."""
    return [layer % period == period - 1 for layer in range(layers)]


def from_hf(checkpoint: Checkpoint) -> Config:
    defaults: Mapping[str, Any] = HF_DEFAULTS.get(checkpoint.architecture, HF_DEFAULTS["llama"])
    get = Reader(checkpoint.path, checkpoint.metadata)
    hidden, heads = get.size("hidden_size"), get.size("num_attention_heads")
    act = get.text("hidden_act", get.text("hidden_activation", defaults["hidden_act"]))
    if act not in ACTIVATIONS:
        raise UnsupportedError(f"{checkpoint.path}: activation {act!r} is not supported; {', '.join(ACTIVATIONS)} are.")
    head_dim = get.size("head_dim", default=defaults.get("head_dim", hidden // heads))
    context = get.size("max_position_embeddings")
    rotary = get.within("rope_parameters" if get.values.get("rope_parameters") else "rope_scaling")
    if rotary.values.get(f"{rotary.prefix}full_attention"):  # one for each type of layer
        rotary = rotary.within("full_attention")
    theta = rotary.number("rope_theta", get.number("rope_theta", defaults["rope_theta"]))
    if rotary.number("partial_rotary_factor", get.number("partial_rotary_factor", 1.0)) != 1:
        raise UnsupportedError(
            f"{checkpoint.path}: partial_rotary_factor is set; only heads that are turned whole are supported."
        )
    for switch in ("attention_bias", "mlp_bias", *UNKNOWN_SWITCHES):
        if checkpoint.metadata.get(switch):
            raise UnsupportedError(f"{checkpoint.path}: {switch} is set, which is not supported.")
    quantization = get.within("quantization_config")
    eps = get.number("rms_norm_eps", defaults["rms_norm_eps"])
    input_norm_eps = None
    if quantization.values.get("quantization_config.use_rms_norm"):  # transformers' BitLinear has its own epsilon
        input_norm_eps = quantization.number("rms_norm_eps", 1e-6)
    elif any(name.endswith(".q_proj.norm.weight") for name in checkpoint.tensors()):
        input_norm_eps = eps
    factors, yarn = hf_scaling(rotary, theta, head_dim, context)
    has_head = "lm_head.weight" in checkpoint.tensors()
    return Config(
        hidden_size=hidden,
        intermediate_size=get.size("intermediate_size"),
        num_hidden_layers=get.size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=get.size("num_key_value_heads", default=heads),
        head_dim=head_dim,
        vocab_size=get.size("vocab_size"),
        max_position_embeddings=context,
        rms_norm_eps=eps,
        rope_theta=theta,
        hidden_act=ACTIVATIONS[act],
        tie_word_embeddings=bool(checkpoint.metadata.get("tie_word_embeddings", not has_head)),
        rope_factors=factors,
        yarn=yarn,
        input_norm_eps=input_norm_eps,
        **(gemma3_hf(get) if checkpoint.architecture == "gemma3_text" else {}),
    )


def gemma3_hf(get: Reader) -> dict[str, Any]:
    """Gemma's windows, the frequencies of the layers that have one, and its scale."""
    layers, pattern = get.size("num_hidden_layers"), get.integer("sliding_window_pattern", 6)
    window = get.size("max_position_embeddings", "sliding_window", 4096)
    types = get.values.get("layer_types") or [
        "sliding_attention" if pattern < 1 or (layer + 1) % pattern else "full_attention" for layer in range(layers)
    ]
    if not isinstance(types, list) or len(types) != layers or not set(types) <= {"sliding_attention", "full_attention"}:
        raise FormatError(f"{get.path}: layer_types is {types!r:.100}; expected one for each of {layers} layers.")
    local = get.within("rope_parameters").within("sliding_attention")
    if local.text("rope_type", "default") != "default":
        raise UnsupportedError(f"{get.path}: the layers with a window scale their rotary frequencies.")
    return {
        "windows": tuple(window if each == "sliding_attention" else 0 for each in types),
        "local_rope_theta": local.number("rope_theta", get.number("rope_local_base_freq", 10000.0)),
        "query_pre_attn_scalar": get.number("query_pre_attn_scalar", 256.0),
    }
