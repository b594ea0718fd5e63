"""BitNet b1.58: a decoder of ternary projections with a norm before each output projection (2B-4T, 1bitLLM).

Source: "BitNet b1.58 2B4T Technical Report" (arXiv:2504.12285). 2B-4T gates with ReLU squared, 1bitLLM with SiLU.
"""

from __future__ import annotations

from bitnet.backends.base import Cache, Step, Value, Weights
from bitnet.models.decoder import Config, Decoder, Shapes, decoder_shapes, projection_shapes


def shapes(config: Config) -> Shapes:
    """Every tensor of the model by our name, with its shape (n outputs, k inputs)."""
    norms: Shapes = {
        "input_layernorm": (config.hidden_size,),
        "self_attn.attn_sub_norm": (config.num_attention_heads * config.head_dim,),
        "post_attention_layernorm": (config.hidden_size,),
        "mlp.ffn_sub_norm": (config.intermediate_size,),
    }
    return decoder_shapes(config, norms | projection_shapes(config))


class Model(Decoder):
    def self_attn(self, x: Value, w: Weights, layer: int, step: Step, cache: Cache) -> Value:
        ops, rope, eps = self.ops, self.config.rope, self.config.rms_norm_eps
        q, k, v = self.project(x, w, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        q, k = ops.rope(q, step.positions, rope), ops.rope(k, step.positions, rope)
        x = ops.attention(q, k, v, cache, layer, step, self.config.head_dim)
        return self.project(ops.rms_norm(x, w["self_attn.attn_sub_norm"], eps), w, "self_attn.o_proj")[0]

    def mlp(self, x: Value, w: Weights) -> Value:
        ops, eps = self.ops, self.config.rms_norm_eps
        gate, up = self.project(x, w, "mlp.gate_proj", "mlp.up_proj")
        x = ops.gate(self.config.hidden_act, gate, up)
        return self.project(ops.rms_norm(x, w["mlp.ffn_sub_norm"], eps), w, "mlp.down_proj")[0]
