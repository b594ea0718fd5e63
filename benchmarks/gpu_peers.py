"""What others make of a model of the same shape on the same card, with random weights: torch and transformers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def bf16_product(size: int) -> float:
    """TFLOP/s of a square product."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_each(lambda: a @ b, 10) / 1e12


def int8_product(size: int) -> float:
    """TOP/s of a square product."""
    import torch

    a, b = (torch.randint(-127, 128, (size, size), device="cuda", dtype=torch.int8) for _ in range(2))
    b = b.t()  # cuBLAS takes the right one by columns
    return 2 * size**3 / seconds_each(lambda: torch._int_mm(a, b), 10) / 1e12


def seconds_each(work: Callable[[], object], count: int) -> float:
    import torch

    for _ in range(3):
        work()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(count):
        work()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3 / count


class DenseDecoder:
    """A step of one token in bfloat16, as plain as torch has it: what a dense model of the same shape costs.

    c: hidden_size and so on. The cache is `context` long and full; the likeliest token feeds the next step.
    """

    def __init__(self, c: Any, context: int, device: str = "cuda") -> None:
        import torch

        self.c, self.context = c, context

        def random(*shape: int) -> Any:
            return torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02

        hidden, ffn = c.hidden_size, c.intermediate_size
        heads, kv_heads, width = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.layers = [
            {
                "qkv": random((heads + 2 * kv_heads) * width, hidden),
                "o": random(hidden, heads * width),
                "gate_up": random(2 * ffn, hidden),
                "down": random(hidden, ffn),
                "norms": torch.ones(2, hidden, device=device, dtype=torch.bfloat16),
                "cache": random(2, 1, kv_heads, context, width),
            }
            for _ in range(c.num_hidden_layers)
        ]
        self.table = random(c.vocab_size, hidden)
        self.token = torch.ones(1, dtype=torch.long, device=device)
        self.last = torch.full((1,), context - 1, dtype=torch.long, device=device)
        angles = (context - 1) * c.rope_theta ** -(torch.arange(0, width, 2, device=device) / width)
        self.cos, self.sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)

    def step(self) -> None:
        from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

        c, x = self.c, self.table[self.token]
        heads, kv_heads, width = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        for w in self.layers:
            qkv = linear(rms_norm(x, (c.hidden_size,), w["norms"][0]), w["qkv"]).view(1, -1, 1, width)
            q, k, v = qkv.split((heads, kv_heads, kv_heads), 1)
            keys, values = w["cache"]
            keys.index_copy_(2, self.last, self.turned(k))
            values.index_copy_(2, self.last, v)
            y = scaled_dot_product_attention(self.turned(q), keys, values, enable_gqa=True)
            x = x + linear(y.reshape(1, -1), w["o"])
            gate, up = linear(rms_norm(x, (c.hidden_size,), w["norms"][1]), w["gate_up"]).chunk(2, -1)
            x = x + linear(silu(gate) * up, w["down"])
        self.token.copy_(linear(x, self.table).argmax(-1))

    def turned(self, x: Any) -> Any:
        import torch

        a, b = x.chunk(2, -1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), -1)


def dense_in_a_graph(c: Any, context: int) -> float:
    """Tokens a second."""
    import torch

    with torch.inference_mode():
        decoder, aside = DenseDecoder(c, context), torch.cuda.Stream()
        with torch.cuda.stream(aside):
            for _ in range(3):
                decoder.step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            decoder.step()
        return 1 / seconds_each(graph.replay, 50)


def of_transformers(c: Any, context: int, quantized: bool, static: bool = False) -> float:
    """Tokens a second of transformers' generate around this context, without the prompt.

    quantized: its own BitNet, else the same model in bfloat16. static: with a static cache, compiled into graphs.
    """
    import torch
    import transformers

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    shape = {name: getattr(c, name) for name in (*names, "vocab_size")}
    config = transformers.BitNetConfig(**shape, max_position_embeddings=4096)
    with torch.device("cuda"):
        model = transformers.BitNetForCausalLM(config).to(torch.bfloat16).eval()
    if quantized:
        from transformers.integrations.bitnet import replace_with_bitnet_linear

        model = replace_with_bitnet_linear(model, ["lm_head"], quantization_config=transformers.BitNetQuantConfig()).to(
            "cuda"
        )
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if static:
        options["cache_implementation"] = "static"
        model.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    ids = torch.ones((1, max(1, context - 32)), dtype=torch.long, device="cuda")

    def generate(count: int) -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
        torch.cuda.synchronize()
        return time.perf_counter() - begun

    with torch.inference_mode():
        for count in (72, 8, 72, 8):  # a static cache of either length is compiled for, and the graphs are captured
            generate(count)
        return 64 / (min(generate(72) for _ in range(2)) - min(generate(8) for _ in range(2)))


# By name, what gives tokens a second of a shape at a context. The one that is compiled takes longest, and is the
# likeliest to fail: it comes last.
PEERS: dict[str, Callable[[Any, int], float]] = {
    "torch, dense bf16 in a CUDA graph": dense_in_a_graph,
    "transformers, BitNet": lambda c, context: of_transformers(c, context, quantized=True),
    "transformers, dense bf16": lambda c, context: of_transformers(c, context, quantized=False),
    "transformers, dense bf16, static cache and graphs": lambda c, context: of_transformers(c, context, False, True),
}
