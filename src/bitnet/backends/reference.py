"""The living definition: every operation in plain NumPy. Slow, and what the others are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.base import BLOCK_SIZE, Ints, Ops, Rope, Step
from bitnet.quant.rules import quantize_activations
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class KVCache:
    """keys, values: (layers, blocks * BLOCK_SIZE, kv_heads, head_dim); a row is a slot."""

    keys: NDArray[Any]
    values: NDArray[Any]

    def write(self, layer: int, slots: Ints, k: Floats, v: Floats) -> None:
        self.keys[layer, slots], self.values[layer, slots] = k, v

    def read(self, layer: int, slots: Ints) -> tuple[Floats, Floats]:
        return self.keys[layer, slots].astype(np.float32), self.values[layer, slots].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Int8KVCache:
    """codes: int8, (2, layers, slots, kv_heads, head_dim), keys then values; scales: float32, without the last axis."""

    codes: NDArray[np.int8]
    scales: Floats

    def write(self, layer: int, slots: Ints, k: Floats, v: Floats) -> None:
        finite = np.isfinite(k).all(-1) & np.isfinite(v).all(-1)
        for part, x in enumerate((k, v)):
            codes, scales = quantize_vectors(np.where(np.isfinite(x).all(-1, keepdims=True), x, 0))
            self.codes[part, layer, slots], self.scales[part, layer, slots] = codes, scales
        self.scales[1, layer, slots] = np.where(finite, self.scales[1, layer, slots], np.nan)

    def read(self, layer: int, slots: Ints) -> tuple[Floats, Floats]:
        keys, values = self.codes[:, layer, slots] * self.scales[:, layer, slots, :, None]
        return keys, values


def quantize_vectors(x: Floats) -> tuple[NDArray[np.int8], Floats]:
    """x (..., d) ~ codes * scales[..., None], scale absmax / 127; vectors of numbers below 1e-30 become zeros."""
    most = np.abs(x).max(-1)
    most = np.where(most < np.float32(1e-30), np.float32(0), most)
    with np.errstate(divide="ignore"):
        inverse = np.where(most > 0, np.float32(127) / most, np.float32(0))
    return np.rint(x * inverse[..., None]).astype(np.int8), most / np.float32(127)


class Reference(Ops):
    name = "reference"

    def put(self, tensor: Tensor) -> Tensor | Floats:
        if isinstance(tensor, DenseTensor) and len(tensor.shape) == 1:
            return tensor.dequantize()
        return tensor

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> KVCache | Int8KVCache:
        shape = (layers, blocks * BLOCK_SIZE, kv_heads, head_dim)
        if dtype == "int8":
            return Int8KVCache(np.zeros((2, *shape), np.int8), np.zeros((2, *shape[:-1]), np.float32))
        kind = {"f32": np.float32, "f16": np.float16}[dtype]
        return KVCache(np.zeros(shape, kind), np.zeros(shape, kind))

    def embed(self, ids: Ints, table: Tensor) -> Floats:
        return rows(table, ids)

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        runs = x.reshape(len(x), x.shape[1] // len(weight), len(weight))
        return (runs / np.sqrt(np.mean(runs * runs, axis=-1, keepdims=True) + np.float32(eps)) * weight).reshape(
            x.shape
        )

    def linear(self, x: Floats, *weights: Tensor) -> tuple[Floats, ...]:
        return tuple(bit_linear(x, w) if isinstance(w, TernaryTensor) else x @ w.dequantize().T for w in weights)

    def rope(self, x: Floats, positions: Ints, rope: Rope) -> Floats:
        cos, sin = (table[positions][:, None] for table in rope.angles(int(positions.max()) + 1))  # (T, 1, D / 2)
        heads = x.reshape(len(x), -1, rope.head_dim)
        half = rope.head_dim // 2
        even, odd = (
            (slice(0, half), slice(half, None)) if rope.style == "neox" else (slice(0, None, 2), slice(1, None, 2))
        )
        turned = np.empty_like(heads)
        turned[..., even] = heads[..., even] * cos - heads[..., odd] * sin
        turned[..., odd] = heads[..., odd] * cos + heads[..., even] * sin
        return turned.reshape(x.shape)

    def attention(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        cache: KVCache | Int8KVCache,
        layer: int,
        step: Step,
        head_dim: int,
        window: int = 0,
    ) -> Floats:
        heads = q.reshape(len(q), -1, head_dim)  # (T, H, D)
        shared = q.shape[1] // k.shape[1]
        out = np.empty_like(heads)
        for b, (start, end) in enumerate(zip(step.starts[:-1], step.starts[1:], strict=True)):
            slots = (step.block_tables[b][:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).reshape(-1)
            here = slots[step.positions[start:end]]
            cache.write(layer, here, *(x[start:end].reshape(end - start, -1, head_dim) for x in (k, v)))
            for t in range(start, end):
                last = step.positions[t] + 1
                past = cache.read(layer, slots[max(0, last - window) if window else 0 : last])
                seen_k, seen_v = (np.repeat(x, shared, axis=1) for x in past)  # (P, H, D)
                scores = np.einsum("hd,phd->hp", heads[t], seen_k) / np.sqrt(np.float32(head_dim))
                out[t] = np.einsum("hp,phd->hd", softmax(scores), seen_v)
        return out.reshape(q.shape)

    def gate(self, act: str, g: Floats, u: Floats) -> Floats:
        return ACTIVATIONS[act](g) * u

    def add(self, x: Floats, y: Floats) -> Floats:
        return x + y

    def scale(self, x: Floats, c: float) -> Floats:
        return x * np.float32(c)

    def hadamard(self, x: Floats, signs: Floats, block: int, inverse: bool = False) -> Floats:
        matrix = np.ones((1, 1), np.float32)
        while len(matrix) < block:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        turned = (x if inverse else x * signs).reshape(-1, block) @ matrix / np.sqrt(np.float32(block))
        return turned.reshape(x.shape) * (signs if inverse else np.float32(1))

    def take(self, x: Floats, rows: Ints) -> Floats:
        return x[rows]

    def head(self, x: Floats, weight: Tensor, top: int | Ints = 0) -> Floats:
        return self.linear(x, weight)[0]


def bit_linear(x: Floats, w: TernaryTensor) -> Floats:
    """(T, k) and ternary (n, k) -> (T, n): int8 activations, an exact integer product, then the scales."""
    codes, multiplier = quantize_activations(x)
    if not w.group:
        product = codes.astype(np.int64) @ w.codes.T.astype(np.int64)  # (T, n)
        return product.astype(np.float32) * (w.scales / multiplier[:, None])
    total = np.zeros((len(x), len(w.codes)), np.float32)
    for g in range(w.scales.shape[1]):
        columns = slice(g * w.group, (g + 1) * w.group)
        product = codes[:, columns].astype(np.int64) @ w.codes[:, columns].T.astype(np.int64)
        total += product.astype(np.float32) * w.scales[:, g]
    return total / multiplier[:, None]


def rows(table: Tensor, ids: Ints) -> Floats:
    """The rows `ids` of a dense or ternary table, as float32."""
    if isinstance(table, DenseTensor):
        return table.rows(ids)
    scales = table.scales if table.scales.ndim == 0 else table.scales[ids]
    return TernaryTensor(table.codes[ids], scales).dequantize()


def softmax(scores: Floats) -> Floats:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def silu(x: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def relu2(x: Floats) -> Floats:
    return np.square(np.maximum(x, 0))


def gelu(x: Floats) -> Floats:
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x**3)))


ACTIVATIONS = {"silu": silu, "relu2": relu2, "gelu": gelu}
