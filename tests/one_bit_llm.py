"""A tiny folder as 1bitLLM published bitnet_b1_58-large and -3B, and its forward pass.

transformers has no class for it, so the pass of those repositories (modeling_bitnet.py, utils_quant.py) is written here
once more, in float64. Needs torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

CONFIG = {
    "architectures": ["BitnetForCausalLM"],
    "model_type": "llama",
    "vocab_size": 102,
    "hidden_size": 80,
    "intermediate_size": 104,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "weight_bits": 1,
    "input_bits": 8,
}


def random_weights() -> dict[str, Any]:
    torch.manual_seed(0)
    hidden, ffn = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    weights = {"model.embed_tokens.weight": torch.randn(CONFIG["vocab_size"], hidden) * 0.3}
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            weights[f"{layer}self_attn.{name}.weight"] = torch.randn(hidden, hidden) * 0.3
        weights[f"{layer}mlp.gate_proj.weight"] = torch.randn(ffn, hidden) * 0.3
        weights[f"{layer}mlp.up_proj.weight"] = torch.randn(ffn, hidden) * 0.3
        weights[f"{layer}mlp.down_proj.weight"] = torch.randn(hidden, ffn) * 0.3
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.inner_attn_ln"):
            weights[f"{layer}{name}.weight"] = torch.rand(hidden) + 0.5
        weights[f"{layer}mlp.ffn_layernorm.weight"] = torch.rand(ffn) + 0.5
    weights["model.norm.weight"] = torch.rand(hidden) + 0.5
    return {name: weight.half() for name, weight in weights.items()}


def forward(weights: dict[str, Any], ids: list[int]) -> Any:
    """Logits (T, vocab), in float64."""
    w = {name.removeprefix("model."): weight.double() for name, weight in weights.items()}
    heads, eps = CONFIG["num_attention_heads"], CONFIG["rms_norm_eps"]

    def bit_linear(x: Any, weight: Any) -> Any:
        s = 1 / weight.abs().mean().clamp(min=1e-5)
        a = 127 / x.abs().max(-1, keepdim=True).values.clamp(min=1e-5)
        return ((x * a).round().clamp(-128, 127) / a) @ ((weight * s).round().clamp(-1, 1) / s).T

    def norm(x: Any, weight: Any) -> Any:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    def rope(x: Any) -> Any:  # (heads, T, D)
        half = x.shape[-1] // 2
        frequencies = CONFIG["rope_theta"] ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies
        angles = torch.cat((angles, angles), -1)
        return x * angles.cos() + torch.cat((-x[..., half:], x[..., :half]), -1) * angles.sin()

    x = w["embed_tokens.weight"][ids]
    for i in range(CONFIG["num_hidden_layers"]):
        layer = {name.removeprefix(f"layers.{i}."): t for name, t in w.items() if name.startswith(f"layers.{i}.")}
        y = norm(x, layer["input_layernorm.weight"])
        q, k, v = (
            bit_linear(y, layer[f"self_attn.{n}_proj.weight"]).view(len(ids), heads, -1).transpose(0, 1) for n in "qkv"
        )
        scores = rope(q) @ rope(k).transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones(len(ids), len(ids)).triu(1).bool(), -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(ids), -1)
        x = x + bit_linear(norm(y, layer["self_attn.inner_attn_ln.weight"]), layer["self_attn.o_proj.weight"])
        y = norm(x, layer["post_attention_layernorm.weight"])
        gate, up = (bit_linear(y, layer[f"mlp.{n}_proj.weight"]) for n in ("gate", "up"))
        y = norm(torch.nn.functional.silu(gate) * up, layer["mlp.ffn_layernorm.weight"])
        x = x + bit_linear(y, layer["mlp.down_proj.weight"])
    return norm(x, w["norm.weight"]) @ w["embed_tokens.weight"].T


def write(folder: Path) -> None:
    save_file(random_weights(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))


def run(folder: Path, prompt: list[int]) -> Any:
    """Logits (T, vocab) of `prompt`."""
    return forward(load_file(folder / "model.safetensors"), prompt).numpy()
