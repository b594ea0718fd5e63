"""How files spell the tensors: our names are Hugging Face's without `model.` and `.weight`."""

from __future__ import annotations

import re

GGUF = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# The norm of its own that stands before a projection in some models.
GGUF |= {f"{name}.norm": f"{spelled}_norm_in" for name, spelled in GGUF.items() if name.endswith("_proj")}
# 1bitLLM/bitnet_b1_58-* call the two sub-norms differently.
HF_ALIASES = {"self_attn.attn_sub_norm": "self_attn.inner_attn_ln", "mlp.ffn_sub_norm": "mlp.ffn_layernorm"}
# What Llama calls post_attention_layernorm stands before the feed-forward network; Gemma's stands behind the attention.
HF_NAMES = {"post_self_attn_layernorm": "post_attention_layernorm"}
# Tensors that hold nothing a model needs, or that are read beside their weight.
IGNORED = re.compile(r"rope_freqs\.weight|.*\.scale|.*\.weight_scale|.*rotary_emb\.inv_freq")


def spellings(name: str, kind: str) -> tuple[str, ...]:
    """What a file of this kind ("gguf" or "hf") may call our tensor `name`, likeliest first."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if kind == "gguf":
        return (f"blk.{match[1]}.{GGUF[match[2]]}.weight" if match else f"{GGUF[name]}.weight",)
    if match is None:
        return (f"{name}.weight",) if name == "lm_head" else (f"model.{name}.weight", f"{name}.weight")
    inner = [HF_NAMES.get(match[2], match[2])]
    if match[2] in HF_ALIASES:
        inner.append(HF_ALIASES[match[2]])
    if match[2].endswith("_proj.norm"):  # transformers' BitLinear says rms_norm
        inner.append(match[2].replace("_proj.norm", "_proj.rms_norm"))
    return tuple(f"{prefix}layers.{match[1]}.{each}.weight" for prefix in ("model.", "") for each in inner)
