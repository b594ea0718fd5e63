"""How many tokens a second training takes in, beside a plain PyTorch BitLinear of the same model, in turns in one run.

python tools/train_throughput.py --threads 2

The plain one is what Microsoft publishes and transformers has: modules of nn.Linear with float32 masters whose forward
pass rounds weight and input by `x + (round(x) - x).detach()`, and scaled_dot_product_attention; once in float32, as
they run by default, and once under autocast to bfloat16. AdamW. Ours is TernaryLM with its trainer's step. All see the
same rows and have the same shapes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bitnet.train.batches import Rows
from bitnet.train.data import words_of
from bitnet.train.model import TernaryLM
from bitnet.train.optimizer import Rates
from bitnet.train.trainer import Plan, Trainer


class PlainBitLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        scale = 127.0 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
        x = x + ((x * scale).round().clamp(-128, 127) / scale - x).detach()
        alpha = self.weight.abs().mean().clamp(min=1e-5)
        weight = self.weight + ((self.weight / alpha).round().clamp(-1, 1) * alpha - self.weight).detach()
        return functional.linear(x, weight)


class PlainNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5))).to(x.dtype)


class PlainLayer(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        hidden, ffn, self.heads, self.kv, self.dim = (c[name] for name in SHAPE)
        self.norms = nn.ModuleList([PlainNorm(n) for n in (hidden, self.heads * self.dim, hidden, ffn)])
        self.q = PlainBitLinear(hidden, self.heads * self.dim, bias=False)
        self.k = PlainBitLinear(hidden, self.kv * self.dim, bias=False)
        self.v = PlainBitLinear(hidden, self.kv * self.dim, bias=False)
        self.o = PlainBitLinear(self.heads * self.dim, hidden, bias=False)
        self.gate = PlainBitLinear(hidden, ffn, bias=False)
        self.up = PlainBitLinear(hidden, ffn, bias=False)
        self.down = PlainBitLinear(ffn, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        rows, length, _ = x.shape
        h = self.norms[0](x)
        q, k, v = (p(h).view(rows, length, -1, self.dim).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = (y * cos + torch.cat((-y[..., self.dim // 2 :], y[..., : self.dim // 2]), -1) * sin for y in (q, k))
        attended = functional.scaled_dot_product_attention(
            q.to(v.dtype), k.to(v.dtype), v, is_causal=True, enable_gqa=True
        )
        x = x + self.o(self.norms[1](attended.transpose(1, 2).reshape(rows, length, -1)))
        h = self.norms[2](x)
        return x + self.down(self.norms[3](functional.relu(self.gate(h)).square() * self.up(h)))


SHAPE = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")


class Plain(nn.Module):
    def __init__(self, c: dict[str, Any], length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList([PlainLayer(c) for _ in range(c["num_hidden_layers"])])
        self.norm = PlainNorm(c["hidden_size"])
        angles = torch.arange(length)[:, None] * 1e4 ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"])
        self.register_buffer("cos", torch.cat((angles.cos(), angles.cos()), -1))
        self.register_buffer("sin", torch.cat((angles.sin(), angles.sin()), -1))

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        logits = functional.linear(self.norm(x), self.embed.weight)
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)


def plain_step(
    description: dict[str, Any], rows: Rows, count: int, length: int, autocast: bool = True
) -> Callable[[int], object]:
    model = Plain(description, length)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)

    def step(number: int) -> None:
        batch = rows.take(number * count, count)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(batch["ids"], batch["targets"])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(description: dict[str, Any], rows: Rows, count: int, compiled: bool) -> Callable[[int], object]:
    out = Path(tempfile.mkdtemp())
    plan = Plan(out, steps=1_000_000, rows=count, compile=compiled)
    model = TernaryLM(description)
    if compiled:
        model.fused = lambda device: False  # type: ignore[method-assign]
    trainer = Trainer(model, rows, plan, rates=Rates("adamw"))
    return lambda _number: trainer.train_step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--hidden", type=int, default=512)
    add("--layers", type=int, default=4)
    add("--vocabulary", type=int, default=4096)
    add("--length", type=int, default=512)
    add("--rows", type=int, default=8)
    add("--steps", type=int, default=8, help="timed steps of each")
    add("--threads", type=int, default=1)
    add("--ours", nargs="+", choices=("kernels", "compiled"), default=("kernels",), help="what is between products")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    description = {
        "model_type": "bitnet", "hidden_size": given.hidden, "intermediate_size": 2 * given.hidden,
        "num_hidden_layers": given.layers, "num_attention_heads": given.hidden // 64,
        "num_key_value_heads": max(1, given.hidden // 256), "head_dim": 64, "vocab_size": given.vocabulary,
        "max_position_embeddings": given.length, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "relu2",
        "tie_word_embeddings": True,
    }  # fmt: skip
    random = np.random.default_rng(0)
    words = [words_of(random.integers(3, given.vocabulary, given.length)) for _ in range(64)]
    rows = Rows(np.stack(words))
    steps = {
        f"plain, {name}": plain_step(description, rows, given.rows, given.length, name == "bfloat16")
        for name in ("float32", "bfloat16")
    }
    steps |= {f"ours, {way}": our_step(description, rows, given.rows, way == "compiled") for way in given.ours}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(2 + given.steps):  # in turns, so that the machine's other work falls on all alike
        for name, step in steps.items():
            began = time.process_time()
            step(number)
            if number >= 2:
                seconds[name].append(time.process_time() - began)
    tokens = given.rows * given.length
    rates = {name: tokens / statistics.median(found) for name, found in seconds.items()}
    for name, rate in rates.items():
        ratios = "  ".join(f"{rate / rates[plain]:.2f} of {plain}" for plain in rates if plain.startswith("plain"))
        print(f"{name:16}  {rate:8.0f} tokens per second of processor time  {ratios}")
    print(json.dumps({"threads": given.threads, "torch": torch.__version__, **rates}))


if __name__ == "__main__":
    main()
