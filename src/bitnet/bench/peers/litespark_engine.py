"""litespark-inference without torch (`litespark_inference.torchless`): BitNets with ReLU squared and a tied head.

Random weights go straight into its packed form. The head stays in bfloat16, its lossless choice; its default is int4.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from importlib import import_module
from typing import Any

import numpy as np

model: Any = import_module("litespark_inference.torchless.model")
pack: Any = import_module("litespark_inference.torchless.pack")
runtime: Any = import_module("litespark_inference.torchless.runtime")

MOST = 64  # tokens of a call: version 1.0.3 computes longer prompts wrongly
ONE = 0x3F80  # 1.0 in bfloat16


def version() -> str:
    return str(import_module("litespark_inference").__version__)


class Engine:
    def __init__(self, request: dict[str, Any]) -> None:
        """request: the `config`, as in config.json, and the most `positions` of a test."""
        c = request["config"]
        hidden, ffn = c["hidden_size"], c["intermediate_size"]
        heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        if c["model_type"] != "bitnet" or c["head_dim"] * heads != hidden:
            raise ValueError(f"{c['model_type']} with heads of {c['head_dim']} is not a shape it knows")
        random = np.random.default_rng(0)
        kv = c["head_dim"] * kv_heads

        def projection(n: int, k: int) -> Any:
            codes = random.integers(-1, 2, (n, k), np.int8)
            return model.PackedProjection(
                w_packed=pack.pack_ternary_4_per_byte(codes),
                w_sum=codes.sum(axis=1, dtype="int32"),
                scale=(1.5 / k) ** 0.5,
                in_features=k,
                out_features=n,
            )

        def norm(size: int) -> Any:
            return np.full(size, ONE, np.uint16)

        layers = [
            model.PackedLayer(
                q_proj=projection(hidden, hidden),
                k_proj=projection(kv, hidden),
                v_proj=projection(kv, hidden),
                o_proj=projection(hidden, hidden),
                gate_proj=projection(ffn, hidden),
                up_proj=projection(ffn, hidden),
                down_proj=projection(hidden, ffn),
                input_norm=norm(hidden),
                post_attn_norm=norm(hidden),
                attn_sub_norm=norm(hidden),
                ffn_sub_norm=norm(ffn),
            )
            for _ in range(c["num_hidden_layers"])
        ]
        config = model.BitNetConfig(
            hidden_size=hidden,
            num_layers=c["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=kv_heads,
            intermediate_size=ffn,
            vocab_size=c["vocab_size"],
            max_position_embeddings=c["max_position_embeddings"],
            rms_norm_eps=c["rms_norm_eps"],
            rope_theta=c["rope_theta"],
        )
        embedding = random.standard_normal((c["vocab_size"], hidden), np.float32)
        embedding *= hidden**-0.5
        bits = (embedding.view(np.uint32) >> 16).astype(np.uint16)
        self._model = model.PackedBitNetModel(config=config, embed_tokens=bits, final_norm=norm(hidden), layers=layers)
        self.vocab_size = c["vocab_size"]
        self._positions = request["positions"]
        self._state = runtime.init_state(self._model, self._positions)

    def reset(self, threads: int) -> None:
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libgomp.so.1").omp_set_num_threads(threads)
        self._state.pos = 0

    def read(self, ids: list[int]) -> None:
        for start in range(0, len(ids), MOST):
            runtime.forward_prefill(self._model, self._state, ids[start : start + MOST])
