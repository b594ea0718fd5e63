"""What the decoder-only architectures share: hyper-parameters, tensor shapes and the way through the layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bitnet.backends.base import Cache, Ops, Rope, Step, Value, Weight, Weights
from bitnet.models.rope_scaling import Yarn
from bitnet.models.rotation import Rotation

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Config:
    """Hyper-parameters, under Hugging Face's names where it has one.

    input_norm_eps: of the norms that stand before every projection in some models; None where there are none.
    windows: for each layer how many positions a token attends, 0: all; empty where that holds for every layer.
    yarn: the rule that rope_factors come of, where it is this one, which scales queries and keys besides.
    local_rope_theta: of the layers with a window. query_pre_attn_scalar: scores are divided by its root; 0: head_dim.
    """

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
    yarn: Yarn | None = None
    input_norm_eps: float | None = None
    windows: tuple[int, ...] = ()
    local_rope_theta: float = 10000.0
    query_pre_attn_scalar: float = 0.0
    rope: Rope = field(init=False, repr=False)
    local_rope: Rope = field(init=False, repr=False)

    def __post_init__(self) -> None:
        scale = self.yarn.attention_factor if self.yarn else 1.0
        rope = Rope(self.rope_theta, self.head_dim, self.rope_style, self.rope_factors, scale)
        object.__setattr__(self, "rope", rope)
        object.__setattr__(self, "local_rope", Rope(self.local_rope_theta, self.head_dim, self.rope_style))


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
    """Embedding, `layer` in every layer, final norm, and the output head unless it is tied to the embedding.

    With input norms every projection of the layer has one, as wide as what it reads.
    """
    if config.input_norm_eps is not None:
        layer = layer | {f"{name}.norm": shape[1:] for name, shape in layer.items() if name.endswith("_proj")}
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
        x = self.rotated(self.hidden(step, cache), self.weights, "lm_head")
        return self.ops.head(x, self.weights["lm_head"], step.top)

    def hidden(self, step: Step, cache: Cache) -> Value:
        """What the output head reads, and what embeddings are made of: the final norm (S, hidden) of the rows
        `step.want`."""
        x = self.embed(step)
        for layer, w in enumerate(self.layers):
            x = self.layer(x, w, layer, step, cache)
        return self.ops.rms_norm(self.ops.take(x, step.want), self.weights["norm"], self.config.rms_norm_eps)

    def on(self, ops: Ops) -> Decoder:
        return type(self)(self.config, self.weights, ops)

    def embed(self, step: Step) -> Value:
        """(T, hidden)."""
        x = self.ops.embed(step.ids, self.weights["embed_tokens"])
        return self.rotated(x, self.weights, "embed_tokens", inverse=True)

    def layer(self, x: Value, w: Weights, layer: int, step: Step, cache: Cache) -> Value:
        """(T, hidden) -> (T, hidden)."""
        ops, eps = self.ops, self.config.rms_norm_eps
        x = ops.add(x, self.self_attn(ops.rms_norm(x, w["input_layernorm"], eps), w, layer, step, cache))
        return ops.add(x, self.mlp(ops.rms_norm(x, w["post_attention_layernorm"], eps), w))

    def project(self, x: Value, w: Weights, *names: str) -> tuple[Value, ...]:
        """x (T, k) through each of the projections (n, k): one (T, n) for each.

        A checkpoint may have put a norm of its own, and a rotation, before each of them.
        """
        if not any(f"{name}.norm" in w or f"{name}.rotation" in w for name in names):
            return self.ops.linear(x, *(w[name] for name in names))
        return tuple(self.ops.linear(self.rotated(self.normed(x, w, name), w, name), w[name])[0] for name in names)

    def normed(self, x: Value, w: Weights, name: str) -> Value:
        norm, eps = w.get(f"{name}.norm"), self.config.input_norm_eps
        return x if norm is None or eps is None else self.ops.rms_norm(x, norm, eps)

    def rotated(self, x: Value, w: Weights, name: str, inverse: bool = False) -> Value:
        rotation: Rotation | None = w.get(f"{name}.rotation")
        return x if rotation is None else self.ops.hadamard(x, rotation.signs, rotation.block, inverse)

    @abstractmethod
    def self_attn(self, x: Value, w: Weights, layer: int, step: Step, cache: Cache) -> Value:
        """(T, hidden) -> (T, hidden)."""

    @abstractmethod
    def mlp(self, x: Value, w: Weights) -> Value:
        """(T, hidden) -> (T, hidden)."""
