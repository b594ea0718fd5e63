"""Llama, whose projections may be ternary: Llama3-8B-1.58, Falcon3, Falcon-E, TriLM; or float."""

from __future__ import annotations

from bitnet.backends.base import Cache, Step, Value, Weights
from bitnet.models.decoder import Config, Decoder, Shapes, decoder_shapes, projection_shapes


def shapes(config: Config) -> Shapes:
    """Every tensor of the model by our name, with its shape (n outputs, k inputs)."""
    norms: Shapes = {"input_layernorm": (config.hidden_size,), "post_attention_layernorm": (config.hidden_size,)}
    return decoder_shapes(config, norms | projection_shapes(config))


class Model(Decoder):
    def self_attn(self, x: Value, w: Weights, layer: int, step: Step, cache: Cache) -> Value:
        ops, rope = self.ops, self.config.rope
        q, k, v = self.project(x, w, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        q, k = ops.rope(q, step.positions, rope), ops.rope(k, step.positions, rope)
        x = ops.attention(q, k, v, cache, layer, step, self.config.head_dim)
        return self.project(x, w, "self_attn.o_proj")[0]

    def mlp(self, x: Value, w: Weights) -> Value:
        gate, up = self.project(x, w, "mlp.gate_proj", "mlp.up_proj")
        return self.project(self.ops.gate(self.config.hidden_act, gate, up), w, "mlp.down_proj")[0]
