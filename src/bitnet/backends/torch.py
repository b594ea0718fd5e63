"""The operations in PyTorch, with gradients: what a model means while it is trained.

BitLinear's roundings are passed straight through (arXiv:2310.11453, section 2.2): forward computes with the ternary
codes and int8 activations of the deployed model, backward pretends that neither was rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor as Torch
from torch.nn import functional

from bitnet.backends.base import BLOCK_SIZE, Ints, Ops, Rope, Step
from bitnet.quant.rules import SMALLEST
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor

TINY = float(SMALLEST)


class Quantized(NamedTuple):
    """A matrix that reads quantised activations: x W^T = (codes of x) @ codes^T * scale.

    codes: (n, k) in the backend's float type, with the gradient of the float matrix behind them: -1, 0 and 1; or that
    matrix itself as far as it is rounded, with a scale of 1. scale: () or (n,). activations: bits, 16 leaves them.
    blend: how far activations are rounded, (); None: wholly.
    """

    codes: Torch
    scale: Torch
    activations: int = 8
    blend: Torch | None = None
    exact: bool = False


class Packed(NamedTuple):
    """In place of a cache while training: T is `rows` windows of equal length, each holding whole documents.

    mask: (rows, 1, length, length), True where a token may look; it keeps documents apart. first (rows, length), in the
    place of the mask: where the document of a token begins.
    seen: layers whose (q, k, v), each (rows, heads, length, head_dim), are to be left here.
    """

    rows: int
    mask: Torch | None
    seen: dict[int, tuple[Torch, ...]]
    first: Torch | None = None


@dataclass(frozen=True, slots=True)
class KVCache:
    """keys, values: (layers, blocks * BLOCK_SIZE, kv_heads, head_dim)."""

    keys: Torch
    values: Torch


def quantize_activations(x: Torch, bits: int = 8) -> tuple[Torch, Torch]:
    """Rows of x (T, k) as whole numbers of `bits` bits in x's type (bf16 holds them exactly), and s (T, 1)."""
    most = float(2 ** (bits - 1) - 1)
    wide = x.float()
    largest = wide.abs().amax(-1, keepdim=True).clamp(min=TINY)
    scale = torch.full_like(largest, most) / largest  # most / largest would multiply by a rounded reciprocal
    return (wide * scale).round().clamp(-most - 1, most).to(x.dtype), scale


def activations(x: Torch, bits: int, blend: Torch | None) -> tuple[Torch, Torch]:
    """As quantize_activations; with 16 bits x itself, and blended with it before the rounding is whole."""
    one = torch.ones((), dtype=torch.float32, device=x.device)
    if bits == 16:
        return x, one
    q, s = quantize_activations(x, bits)
    return (q, s) if blend is None else (torch.lerp(x.float(), q.float() / s, blend).to(x.dtype), one)


class BitLinear(torch.autograd.Function):
    """x (T, k) times each quantised (n, k) -> one (T, n) for each; x is quantised once, and they are one product.

    weights: codes and scale of each in turn.
    """

    @staticmethod
    def forward(ctx: Any, x: Torch, bits: int, blend: Torch | None, *weights: Torch) -> tuple[Torch, ...]:
        q, s = activations(x, bits, blend)
        codes, scales = stacked(weights)
        ctx.save_for_backward(q, s, codes, scales)
        ctx.scale_shapes = [scale.shape for scale in weights[1::2]]
        ctx.sizes = [len(each) for each in weights[::2]]
        y = ((q @ codes.t()).float() * (scales / s)).to(x.dtype)
        return torch.split(y, ctx.sizes, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Torch) -> tuple[Torch | None, ...]:
        q, s, codes, scales = ctx.saved_tensors
        grad = grads[0] if len(grads) == 1 else torch.cat(grads, 1)
        x_grad = (grad * scales.to(grad.dtype)) @ codes
        of_matrix = (grad.float() / s).to(q.dtype).t() @ q
        weight_grads: list[Torch | None] = []
        parts = zip(torch.split(of_matrix, ctx.sizes), torch.split(codes, ctx.sizes), ctx.scale_shapes, strict=True)
        for i, (part, own, shape) in enumerate(parts):
            wanted = ctx.needs_input_grad[4 + 2 * i]
            weight_grads += [part, (part.float() * own).sum(1 if shape else None) if wanted else None]
        return x_grad, None, None, *weight_grads


def stacked(weights: Sequence[Torch]) -> tuple[Torch, Torch]:
    """Codes and scales in turn, as the codes (n of all, k) and a scale for each row."""
    codes = weights[0] if len(weights) == 2 else torch.cat(list(weights[::2]))
    return codes, torch.cat([scale.expand(len(each)) for each, scale in zip(weights[::2], weights[1::2], strict=True)])


def bit_linear(x: Torch, *weights: Quantized) -> tuple[Torch, ...]:
    """x (T, k) through weights that quantise it alike."""
    flat = [tensor for weight in weights for tensor in (weight.codes, weight.scale)]
    bits, blend = weights[0].activations, weights[0].blend
    return cast(tuple[Torch, ...], BitLinear.apply(x, bits, blend, *flat))  # type: ignore[no-untyped-call]


class TorchOps(Ops):
    """dtype: of activations. bfloat16 to train; float32 makes BitLinear exact, as its integers stay below 2^24."""

    name = "torch"

    def __init__(self, dtype: torch.dtype = torch.float32, positions: int = 0, ropes: Sequence[Rope] = ()) -> None:
        self.dtype = dtype
        self.angles = {rope: self.table(rope, positions) for rope in ropes}

    @staticmethod
    def table(rope: Rope, count: int) -> tuple[Torch, Torch]:
        cos, sin = rope.angles(count)
        return torch.from_numpy(cos), torch.from_numpy(sin)

    def put(self, tensor: Tensor) -> Quantized | Torch:
        if isinstance(tensor, TernaryTensor):
            codes = torch.from_numpy(np.array(tensor.codes)).to(self.dtype)
            scales = torch.from_numpy(np.array(tensor.scales))
            if tensor.group:
                return Quantized(codes * scales.to(self.dtype).repeat_interleave(tensor.group, 1), torch.tensor(1.0))
            return Quantized(codes, scales)
        assert isinstance(tensor, DenseTensor)
        return torch.from_numpy(np.array(tensor.dequantize()))

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> KVCache:
        shape = (layers, blocks * BLOCK_SIZE, kv_heads, head_dim)
        kind = {"f32": torch.float32, "f16": torch.float16}.get(dtype)
        if kind is None:
            raise NotImplementedError(f"The torch backend caches f32 or f16, not {dtype}; use backend='cpu'.")
        return KVCache(torch.zeros(shape, dtype=kind), torch.zeros(shape, dtype=kind))

    def embed(self, ids: Any, table: Torch) -> Torch:
        return functional.embedding(torch.as_tensor(ids).long(), table).to(self.dtype)

    def rms_norm(self, x: Torch, weight: Torch, eps: float) -> Torch:
        wide = x.float().view(len(x), x.shape[1] // len(weight), len(weight))
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).view(x.shape).to(x.dtype)

    def linear(self, x: Torch, *weights: Any) -> tuple[Torch, ...]:
        if all(isinstance(w, Quantized) for w in weights):
            return bit_linear(x, *weights)
        return tuple(bit_linear(x, w)[0] if isinstance(w, Quantized) else x @ w.t().to(x.dtype) for w in weights)

    def rope(self, x: Torch, positions: Any, rope: Rope) -> Torch:
        cos, sin = self.angles[rope] if rope in self.angles else self.table(rope, int(positions.max()) + 1)
        cos, sin = cos.to(x.device), sin.to(x.device)
        at = torch.as_tensor(positions, device=x.device).long()
        cos, sin = cos[at][:, None], sin[at][:, None]  # (T, 1, D / 2)
        heads = x.float().view(len(x), -1, rope.head_dim)
        if rope.style == "neox":
            even, odd = heads.chunk(2, -1)
            turned = torch.cat((even * cos - odd * sin, odd * cos + even * sin), -1)
        else:
            even, odd = heads[..., 0::2], heads[..., 1::2]
            turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1)
        return turned.reshape(x.shape).to(x.dtype)

    def attention(
        self, q: Torch, k: Torch, v: Torch, cache: Any, layer: int, step: Step, head_dim: int, window: int = 0
    ) -> Torch:
        if isinstance(cache, Packed):
            q, k, v = (y.view(cache.rows, -1, y.shape[-1] // head_dim, head_dim).transpose(1, 2) for y in (q, k, v))
            if layer in cache.seen:
                cache.seen[layer] = (q, k, v)
            mask = cache.mask
            assert mask is not None
            out = attend(q, k, v, mask & near(q.shape[2], window, q.device) if window else mask)  # (rows, H, L, D)
            return out.transpose(1, 2).reshape(-1, out.shape[1] * head_dim)
        outs = []
        for b, (start, end) in enumerate(zip(step.starts[:-1], step.starts[1:], strict=True)):
            at = torch.from_numpy(step.positions[start:end].astype(np.int64))
            table = step.block_tables[b].astype(np.int64)
            slots = torch.from_numpy((table[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1))
            keys, values = cache.keys[layer], cache.values[layer]
            keys[slots[at]] = k[start:end].view(end - start, -1, head_dim).to(keys.dtype)
            values[slots[at]] = v[start:end].view(end - start, -1, head_dim).to(values.dtype)
            past = slots[: int(at[-1]) + 1]
            mask = torch.arange(len(past)) <= at[:, None]  # (T of b, P)
            if window:
                mask &= torch.arange(len(past)) > at[:, None] - window
            seen_k, seen_v = (y.transpose(0, 1)[None].to(q.dtype) for y in (keys[past], values[past]))
            out = attend(q[start:end].view(end - start, -1, head_dim).transpose(0, 1)[None], seen_k, seen_v, mask)
            outs.append(out[0].transpose(0, 1).reshape(end - start, -1))
        return torch.cat(outs)

    def gate(self, act: str, g: Torch, u: Torch) -> Torch:
        return ACTIVATIONS[act](g) * u

    def add(self, x: Torch, y: Torch) -> Torch:
        return x + y

    def scale(self, x: Torch, c: float) -> Torch:
        return x * c

    def hadamard(self, x: Torch, signs: Any, block: int, inverse: bool = False) -> Torch:
        matrix = torch.ones((1, 1))
        while len(matrix) < block:
            matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
        signs = torch.as_tensor(signs)
        wide = x.float() if inverse else x.float() * signs
        turned = (wide.view(-1, block) @ matrix / math.sqrt(block)).view(x.shape)
        return (turned * signs if inverse else turned).to(x.dtype)

    def take(self, x: Torch, rows: Ints | None) -> Torch:
        return x if rows is None else x[torch.as_tensor(rows).long()]

    def head(self, x: Torch, weight: Torch, top: int | Ints = 0) -> Torch:
        return self.linear(x, weight)[0]


def near(length: int, window: int, device: torch.device) -> Torch:
    """(length, length): True where a key is less than `window` positions back."""
    at = torch.arange(length, device=device)
    return at[:, None] - at < window


def attend(q: Torch, k: Torch, v: Torch, mask: Torch) -> Torch:
    """(rows, H, T, D), (rows, Hkv, P, D) twice -> (rows, H, T, D); mask (..., T, P) is True where q may look.

    Written out because torch.compile fuses it: 1.5 times faster in training on a CPU than scaled_dot_product_attention
    with a mask. The query heads that share a key head are rows of one product.
    """
    rows, heads, count, head_dim = q.shape
    grouped = (q / math.sqrt(head_dim)).reshape(rows, k.shape[1], -1, head_dim)
    scores = (grouped @ k.mT).view(rows, heads, count, -1).float().masked_fill(~mask, -1e9)
    weights = scores.softmax(-1).to(q.dtype).view(rows, k.shape[1], -1, k.shape[2])
    return (weights @ v).view(q.shape)


def relu2(x: Torch) -> Torch:
    return torch.relu(x).square()


def gelu(x: Torch) -> Torch:
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))


ACTIVATIONS: dict[str, Callable[[Torch], Torch]] = {"silu": functional.silu, "relu2": relu2, "gelu": gelu}
