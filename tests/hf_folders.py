"""Tiny random checkpoints written and run by `transformers`: what test_transformers.py and the goldens compare with.

Needs torch and transformers (and accelerate, which transformers wants for quantised models).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.bitnet import pack_weights

torch._dynamo.config.disable = True  # transformers decorates its BitLinear with torch.compile

BITNET = "BitNetForCausalLM", "BitNetConfig"
LLAMA = "LlamaForCausalLM", "LlamaConfig"
QWEN3 = "Qwen3ForCausalLM", "Qwen3Config"
GEMMA3 = "Gemma3ForCausalLM", "Gemma3TextConfig"
SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# As prism-ml's Bonsai models have it; low frequencies, a ramp and high ones in a head of 32 numbers.
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
GEMMA3_TEXT = {
    "head_dim": 32,
    "num_hidden_layers": 3,
    "sliding_window": 5,
    "query_pre_attn_scalar": 32,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
PROMPT = [1, *np.random.default_rng(7).integers(3, 96, 29).tolist()]


@dataclass(frozen=True)
class Case:
    """kind: the classes of transformers. linear_class, mode: as in its BitNetQuantConfig, which has neither where the
    first is "". dtype: of the stored floats.

    seed: one with which no activation falls so close to a rounding boundary that the noise of float32 (about 1e-7)
    moves it to the next of the 255 levels; such a step is seen in all later logits, as 1e-2 to 1e-1.
    """

    kind: tuple[str, str]
    linear_class: str
    mode: str = "offline"
    dtype: torch.dtype = torch.bfloat16
    config: dict[str, Any] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


CASES = {
    "bitnet-online": Case(BITNET, "autobitlinear", "online"),
    "bitnet-autobitlinear": Case(BITNET, "autobitlinear"),
    "bitnet-bitlinear": Case(BITNET, "bitlinear", seed=1),
    "bitnet-untied": Case(BITNET, "autobitlinear", config={"tie_word_embeddings": False}),
    "bitnet-silu-mha": Case(
        BITNET, "autobitlinear", "online", torch.float16, {"hidden_act": "silu", "num_key_value_heads": 4}, seed=1
    ),
    "llama-bitlinear": Case(LLAMA, "bitlinear", seed=1),
    "llama-online": Case(LLAMA, "autobitlinear", "online", torch.float32),
    "llama-head-dim": Case(LLAMA, "bitlinear", config={"head_dim": 24, "num_attention_heads": 4}),
    "llama-untied-mqa": Case(
        LLAMA, "bitlinear", config={"tie_word_embeddings": False, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}
    ),
    "llama-rope-llama3": Case(LLAMA, "bitlinear", config={"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-linear": Case(
        LLAMA,
        "bitlinear",
        config={"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}},
        seed=1,
    ),
    "llama-input-norms": Case(LLAMA, "bitlinear", quantization={"use_rms_norm": True, "rms_norm_eps": 1e-5}),
    "llama-input-norms-online": Case(
        LLAMA,
        "autobitlinear",
        "online",
        quantization={"use_rms_norm": True, "modules_to_not_convert": ["lm_head", "down_proj"]},
    ),
    "qwen3-bitlinear": Case(QWEN3, "bitlinear", config={"head_dim": 32}),
    "qwen3-yarn": Case(QWEN3, "bitlinear", config={"head_dim": 32, "rope_parameters": YARN_ROPE}),
    "llama-yarn-own-factors": Case(
        LLAMA,
        "bitlinear",
        config={"rope_parameters": YARN_ROPE | {"attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 0.5}},
    ),
    "llama-input-norms-autobitlinear": Case(LLAMA, "autobitlinear", quantization={"use_rms_norm": True}),
    # As onebitllms writes Falcon-E: no class and no mode, which means BitLinear and packed.
    "falcon-e": Case(LLAMA, "", "offline", config={"tie_word_embeddings": False, "is_bitnet_config": True}),
    "qwen3-online": Case(QWEN3, "autobitlinear", "online", config={"head_dim": 16, "tie_word_embeddings": False}),
    "gemma3-online": Case(GEMMA3, "autobitlinear", "online", config=GEMMA3_TEXT),
    "gemma3-bitlinear": Case(
        GEMMA3, "bitlinear", config=GEMMA3_TEXT | {"query_pre_attn_scalar": 12, "sliding_window": 9}
    ),
    "llama-kept-down-proj": Case(
        LLAMA, "autobitlinear", "online", quantization={"modules_to_not_convert": ["lm_head", "down_proj"]}, seed=1
    ),
}


def write(case: Case, folder: Path, ternary: int = 0) -> None:
    """The folder as its publisher would upload it: config.json and model.safetensors, packed where mode is offline.

    ternary: floats that are ternary already, with so many scales a projection, and nothing said of it.
    """
    torch.manual_seed(case.seed)
    config = getattr(transformers, case.kind[1])(**SMALL | case.config)
    model = getattr(transformers, case.kind[0])(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    model.to(case.dtype).save_pretrained(folder)
    if ternary:
        round_floats(folder / "model.safetensors", ternary)
        return
    if case.mode == "offline":
        pack(folder / "model.safetensors", case.linear_class or "bitlinear")
    if case.quantization.get("use_rms_norm"):
        add_input_norms(folder / "model.safetensors", config, case)
    written = json.loads((folder / "config.json").read_text())
    written["quantization_config"] = {
        "quant_method": "bitnet",
        **({"linear_class": case.linear_class, "quantization_mode": case.mode} if case.linear_class else {}),
        **case.quantization,
    }
    (folder / "config.json").write_text(json.dumps(written, indent=1))
    (folder / "generation_config.json").unlink(missing_ok=True)


def pack(file: Path, linear_class: str) -> None:
    """Replace every projection by its ternary codes, packed by transformers' own function, and its scale.

    AutoBitLinear multiplies by weight_scale, BitLinear divides by it.
    """
    packed = {}
    for name, weight in load_file(file).items():
        if not name.endswith("_proj.weight"):
            packed[name] = weight
            continue
        scale = weight.float().abs().mean()
        packed[name] = pack_weights((weight.float() / scale).round().clamp(-1, 1))
        stored = scale if linear_class == "autobitlinear" else 1 / scale
        packed[name.replace(".weight", ".weight_scale")] = stored.reshape(1).to(weight.dtype)
    save_file(packed, file, {"format": "pt"})


def round_floats(file: Path, devices: int) -> None:
    """Replace every projection by -1, 0 and 1 times the scale of its device: of some columns where it writes the hidden
    state, of some rows elsewhere."""
    tensors = load_file(file)
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            parts = weight.float().chunk(devices, dim=1 if "o_proj" in name or "down_proj" in name else 0)
            scales = [part.abs().mean().to(weight.dtype) for part in parts]
            rounded = [(part / s.float()).round().clamp(-1, 1) * s for part, s in zip(parts, scales, strict=True)]
            tensors[name] = torch.cat(rounded, dim=1 if "o_proj" in name or "down_proj" in name else 0).to(weight.dtype)
    save_file(tensors, file, {"format": "pt"})


def add_input_norms(file: Path, config: Any, case: Case) -> None:
    """The norm that BitLinear puts before every projection that it replaces."""
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        if name.removesuffix(".weight").rsplit(".", 1)[1] in case.quantization.get("modules_to_not_convert", ()):
            continue
        heads = config.num_attention_heads * config.head_dim
        width = {"o_proj": heads, "down_proj": config.intermediate_size}
        norm = torch.rand(width.get(name.split(".")[-2], config.hidden_size)) + 0.5
        tensors[name.replace(".weight", ".rms_norm.weight")] = norm.to(case.dtype)
    save_file(tensors, file, {"format": "pt"})


def run(folder: Path, prompt: list[int], count: int) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Logits (T, vocab) of `prompt` and the `count` greedy tokens after it, by transformers in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    torch.nn.Module.float(model)  # from_pretrained leaves some tensors of a quantised model in the stored type
    ids = torch.tensor([prompt])
    with torch.no_grad():
        logits = model(ids).logits[0].numpy()
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
    return logits, out[0, len(prompt) :].tolist()
