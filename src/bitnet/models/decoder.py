"""What the decoder-only architectures share: hyper-parameters, tensor shapes and the way through the layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bitnet.backends.base import Cache, Ops, Rope, Step, Value, Weight, Weights

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Config:
    """Hyper-parameters, under Hugging Face's names."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    hidden_act: str = "silu"  # "silu", "relu2" or "gelu"
    tie_word_embeddings: bool = True
    rope_style: str = "neox"
    rope_factors: tuple[float, ...] | None = None
    rope: Rope = field(init=False, repr=False)

    def __post_init__(self) -> None:
        rope = Rope(self.rope_theta, self.head_dim, self.rope_style, self.rope_factors)
        object.__setattr__(self, "rope", rope)


def projection_shapes(config: Config) -> Shapes:
    """The seven matrices of a layer, (n outputs, k inputs): those that BitNet makes ternary."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
    }


def decoder_shapes(config: Config, layer: Shapes) -> Shapes:
    """Embedding, `layer` in every layer, final norm, and the output head unless it is tied to the embedding."""
    table: Shapes = {"embed_tokens": (config.vocab_size, config.hidden_size)}
    for i in range(config.num_hidden_layers):
        table |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    table["norm"] = (config.hidden_size,)
    if not config.tie_word_embeddings:
        table["lm_head"] = (config.vocab_size, config.hidden_size)
    return table


def layer_weights(weights: Weights, layers: int) -> Sequence[Mapping[str, Weight]]:
    """The weights of each layer, under their names within the layer."""
    found: list[dict[str, Weight]] = [{} for _ in range(layers)]
    for name, weight in weights.items():
        if name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            found[int(index)][rest] = weight
    return found


class Decoder(ABC):
    """Embedding, layers of attention and feed-forward network around a residual stream, norm, output head."""

    def __init__(self, config: Config, weights: Weights, ops: Ops) -> None:
        self.config, self.weights, self.ops = config, weights, ops
        self.layers = layer_weights(weights, config.num_hidden_layers)

    def __call__(self, step: Step, cache: Cache) -> Value:
        """Logits (S, vocab) of the rows `step.want`, as many as `step.top` asks for; leaves the step's keys and values
        in the cache."""
        ops, weights, eps = self.ops, self.weights, self.config.rms_norm_eps
        x = ops.embed(step.ids, weights["embed_tokens"])  # (T, hidden)
        for layer, w in enumerate(self.layers):
            x = ops.add(x, self.self_attn(ops.rms_norm(x, w["input_layernorm"], eps), w, layer, step, cache))
            x = ops.add(x, self.mlp(ops.rms_norm(x, w["post_attention_layernorm"], eps), w))
        return ops.head(ops.rms_norm(ops.take(x, step.want), weights["norm"], eps), weights["lm_head"], step.top)

    def on(self, ops: Ops) -> Decoder:
        return type(self)(self.config, self.weights, ops)

    @abstractmethod
    def self_attn(self, x: Value, w: Weights, layer: int, step: Step, cache: Cache) -> Value:
        """(T, hidden) -> (T, hidden)."""

    @abstractmethod
    def mlp(self, x: Value, w: Weights) -> Value:
        """(T, hidden) -> (T, hidden)."""
