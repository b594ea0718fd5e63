"""Gemma 3 (text), whose projections may be ternary: the BitNet embedding model of 270M.

Source: "Gemma 3 Technical Report" (arXiv:2503.19786).
"""

from __future__ import annotations

import math

import numpy as np

from bitnet.backends.base import Cache, Step, Value, Weights
from bitnet.models.decoder import Config, Decoder, Shapes, decoder_shapes, projection_shapes
from bitnet.quant.tensor import DenseTensor, Tensor


def shapes(config: Config) -> Shapes:
    """Every tensor of the model by our name, with its shape (n outputs, k inputs)."""
    norms: Shapes = {
        "input_layernorm": (config.hidden_size,),
        "self_attn.q_norm": (config.head_dim,),
        "self_attn.k_norm": (config.head_dim,),
        "post_self_attn_layernorm": (config.hidden_size,),
        "pre_feedforward_layernorm": (config.hidden_size,),
        "post_feedforward_layernorm": (config.hidden_size,),
    }
    return decoder_shapes(config, norms | projection_shapes(config))


def sanitize(name: str, tensor: Tensor, kind: str) -> Tensor:
    """Hugging Face files store w - 1 for the norms of Gemma itself; GGUF files store w."""
    if kind == "hf" and len(tensor.shape) == 1 and not name.endswith("_proj.norm"):
        return DenseTensor(tensor.dequantize() + np.float32(1))
    return tensor


class Model(Decoder):
    def embed(self, step: Step) -> Value:
        return self.ops.scale(super().embed(step), math.sqrt(self.config.hidden_size))

    def layer(self, x: Value, w: Weights, layer: int, step: Step, cache: Cache) -> Value:
        ops, eps = self.ops, self.config.rms_norm_eps
        y = self.self_attn(ops.rms_norm(x, w["input_layernorm"], eps), w, layer, step, cache)
        x = ops.add(x, ops.rms_norm(y, w["post_self_attn_layernorm"], eps))
        y = self.mlp(ops.rms_norm(x, w["pre_feedforward_layernorm"], eps), w)
        return ops.add(x, ops.rms_norm(y, w["post_feedforward_layernorm"], eps))

    def self_attn(self, x: Value, w: Weights, layer: int, step: Step, cache: Cache) -> Value:
        ops, c, eps = self.ops, self.config, self.config.rms_norm_eps
        window = c.windows[layer] if c.windows else 0
        rope = c.local_rope if window else c.rope
        q, k, v = self.project(x, w, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        q, k = ops.rms_norm(q, w["self_attn.q_norm"], eps), ops.rms_norm(k, w["self_attn.k_norm"], eps)
        q, k = ops.rope(q, step.positions, rope), ops.rope(k, step.positions, rope)
        if c.query_pre_attn_scalar not in (0, c.head_dim):
            q = ops.scale(q, math.sqrt(c.head_dim / c.query_pre_attn_scalar))
        x = ops.attention(q, k, v, cache, layer, step, c.head_dim, window)
        return self.project(x, w, "self_attn.o_proj")[0]

    def mlp(self, x: Value, w: Weights) -> Value:
        gate, up = self.project(x, w, "mlp.gate_proj", "mlp.up_proj")
        return self.project(self.ops.gate(self.config.hidden_act, gate, up), w, "mlp.down_proj")[0]
