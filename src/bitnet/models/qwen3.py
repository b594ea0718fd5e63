"""Qwen3, whose projections may be ternary or binary: Bonsai, and the BitNet embedding model of 0.6B."""

from __future__ import annotations

from bitnet.backends.base import Cache, Step, Value, Weights
from bitnet.models import llama
from bitnet.models.decoder import Config, Shapes, decoder_shapes, projection_shapes


def shapes(config: Config) -> Shapes:
    """Every tensor of the model by our name, with its shape (n outputs, k inputs)."""
    norms: Shapes = {
        "input_layernorm": (config.hidden_size,),
        "self_attn.q_norm": (config.head_dim,),
        "self_attn.k_norm": (config.head_dim,),
        "post_attention_layernorm": (config.hidden_size,),
    }
    return decoder_shapes(config, norms | projection_shapes(config))


class Model(llama.Model):
    """Llama with a norm on every head of the queries and keys."""

    def self_attn(self, x: Value, w: Weights, layer: int, step: Step, cache: Cache) -> Value:
        ops, rope, eps = self.ops, self.config.rope, self.config.rms_norm_eps
        q, k, v = self.project(x, w, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        q, k = ops.rms_norm(q, w["self_attn.q_norm"], eps), ops.rms_norm(k, w["self_attn.k_norm"], eps)
        q, k = ops.rope(q, step.positions, rope), ops.rope(k, step.positions, rope)
        x = ops.attention(q, k, v, cache, layer, step, self.config.head_dim)
        return self.project(x, w, "self_attn.o_proj")[0]
