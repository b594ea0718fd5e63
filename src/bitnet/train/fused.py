"""A training step on a CPU in bfloat16: the same meaning as TorchOps, with the core's kernels between the products.

Norm, gate and quantisation are one pass over what a projection reads. Forward multiplies int8 by ternary codes exactly.
Of the two products of the backward pass the weights' gradient is one of bfloat16; the inputs' gradient multiplies the
ternary codes by the outputs' gradient in int8 with a scale for each token (SwitchBack, arXiv:2304.13013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor as Torch
from torch.autograd import Function

import bitnet._core as _core
from bitnet.backends.base import Rope
from bitnet.backends.torch import Packed, Quantized, TorchOps
from bitnet.models.decoder import Config

core: Any = _core  # whose arrays are PyTorch's tensors here
LANES, QUERIES, LOGITS = 16, 64, 4 << 20  # of a vector; of a block of attention; that are made at a time
SUMS = 1 << 20  # int32, that are made at a time: they stay in the cache until they are read
_sums = torch.empty(0, dtype=torch.int32)


def suits(config: Config, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether FusedOps can run a model of these sizes there."""
    widths = (config.hidden_size, config.intermediate_size, config.head_dim // 2)
    return (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and hasattr(torch, "_int_mm")
        and not any(width % LANES for width in widths)
        and not torch.compiler.is_compiling()
    )


@dataclass(frozen=True, slots=True)
class Pending:
    """act(gate) * x, or x, then an RMS norm if it has a weight: computed by what reads it."""

    x: Torch
    gate: Torch | None = None
    act: str = ""
    norm: Torch | None = None
    eps: float = 0.0


class FusedOps(TorchOps):
    name = "fused"

    def rms_norm(self, x: Any, weight: Torch, eps: float) -> Any:
        if isinstance(x, Pending) and x.norm is None and len(weight) == x.x.shape[1]:
            return Pending(x.x, x.gate, x.act, weight, eps)
        x = whole(x)
        return Pending(x, norm=weight, eps=eps) if len(weight) == x.shape[1] else super().rms_norm(x, weight, eps)

    def linear(self, x: Any, *weights: Any) -> tuple[Torch, ...]:
        if all(isinstance(w, Quantized) and w.exact and w.activations == 8 for w in weights):
            p = x if isinstance(x, Pending) else Pending(x)
            flat = [tensor for weight in weights for tensor in (weight.codes, weight.scale)]
            return cast(tuple[Torch, ...], Linear.apply(p.x, p.gate, p.norm, p.act, p.eps, *flat))  # type: ignore[no-untyped-call]
        return super().linear(whole(x), *weights)

    def rope(self, x: Any, positions: Any, rope: Rope) -> Torch:
        if rope.style != "neox" or rope not in self.angles:
            return super().rope(whole(x), positions, rope)
        cos, sin = self.angles[rope]
        return cast(Torch, Turn.apply(whole(x), positions, cos, sin))  # type: ignore[no-untyped-call]

    def attention(
        self, q: Any, k: Any, v: Any, cache: Any, layer: int, step: Any, head_dim: int, window: int = 0
    ) -> Torch:
        q, k, v = whole(q), whole(k), whole(v)
        if not isinstance(cache, Packed) or cache.first is None:
            return super().attention(q, k, v, cache, layer, step, head_dim, window)
        if layer in cache.seen:
            cache.seen[layer] = tuple(
                y.view(cache.rows, -1, y.shape[-1] // head_dim, head_dim).transpose(1, 2) for y in (q, k, v)
            )
        return cast(Torch, Attention.apply(q, k, v, cache.first, head_dim, window))  # type: ignore[no-untyped-call]

    def gate(self, act: str, g: Any, u: Any) -> Any:
        return Pending(whole(u), whole(g), act)

    def add(self, x: Any, y: Any) -> Torch:
        return super().add(whole(x), whole(y))

    def scale(self, x: Any, c: float) -> Torch:
        return super().scale(whole(x), c)

    def hadamard(self, x: Any, signs: Any, block: int, inverse: bool = False) -> Torch:
        return super().hadamard(whole(x), signs, block, inverse)


def whole(x: Any) -> Torch:
    return cast(Torch, Input.apply(x.x, x.gate, x.norm, x.act, x.eps)) if isinstance(x, Pending) else x  # type: ignore[no-untyped-call]


def sums_of(x: Torch, y: Torch) -> Torch:
    """x (T, k) @ y (k, n) of int8, in memory that the next call overwrites."""
    global _sums
    count = len(x) * y.shape[1]
    if len(_sums) < count:
        _sums = torch.empty(count, dtype=torch.int32)
    return torch._int_mm(x, y, out=_sums[:count].view(len(x), -1))


def spans(rows: int, columns: int, most: int = SUMS) -> list[slice]:
    """Rows to work on at a time, in whole runs of those that share a norm's gradient."""
    step = max(1, most // columns // core.TRAIN_NORM_ROWS) * core.TRAIN_NORM_ROWS
    return [slice(at, min(rows, at + step)) for at in range(0, rows, step)]


class Reading:
    """The part of a function's backward pass that goes through what was read; `saved`: x, gate and norm."""

    def __init__(self, saved: tuple[Torch | None, ...], act: str, eps: float) -> None:
        self.x, self.gate, self.norm = saved
        assert self.x is not None
        self.act, self.eps = act, eps
        rows, k = self.x.shape
        self.x_grad = torch.empty_like(self.x)
        self.gate_grad = None if self.gate is None else torch.empty_like(self.gate)
        self.norm_grads = None if self.norm is None else torch.zeros(-(-rows // core.TRAIN_NORM_ROWS), k)

    def add(
        self, span: slice, sums: Torch | None = None, multipliers: Torch | None = None, grad: Torch | None = None
    ) -> None:
        assert self.x is not None
        runs = slice(span.start // core.TRAIN_NORM_ROWS, -(-span.stop // core.TRAIN_NORM_ROWS))
        gate, gate_grad, norm_grads = (
            None if y is None else y[part]
            for y, part in ((self.gate, span), (self.gate_grad, span), (self.norm_grads, runs))
        )
        core.train_input_backward(
            self.x[span], gate, self.act, self.norm, self.eps, sums, multipliers, grad, norm_grads,
            self.x_grad[span], gate_grad,
        )  # fmt: skip

    @property
    def grads(self) -> tuple[Torch | None, ...]:
        return self.x_grad, self.gate_grad, None if self.norm_grads is None else self.norm_grads.sum(0)


def plain(*tensors: Torch | None) -> tuple[Torch | None, ...]:
    return tuple(None if tensor is None else tensor.detach().contiguous() for tensor in tensors)


class Input(Function):
    """(x, gate, norm, act, eps) -> what they are together, in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Torch, gate: Torch | None, norm: Torch | None, act: str, eps: float) -> Torch:
        read = plain(x, gate, norm)
        ctx.save_for_backward(*read)
        ctx.how = act, eps
        y = torch.empty_like(cast(Torch, read[0]))
        core.train_evaluate(read[0], read[1], act, read[2], eps, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Torch) -> tuple[Torch | None, ...]:
        reading = Reading(ctx.saved_tensors, *ctx.how)
        reading.add(slice(0, len(grad)), grad=grad.contiguous())
        return *reading.grads, None, None


class Linear(Function):
    """(x, gate, norm, act, eps), codes and scale of each weight in turn -> an output (T, n) for each."""

    @staticmethod
    def forward(
        ctx: Any, x: Torch, gate: Torch | None, norm: Torch | None, act: str, eps: float, *weights: Torch
    ) -> tuple[Torch, ...]:
        read = plain(x, gate, norm)
        rows, k = x.shape
        codes = torch.cat([each.detach().to(torch.int8) for each in weights[::2]])
        ctx.sizes = [len(each) for each in weights[::2]]
        ctx.scale_shapes = [each.shape for each in weights[1::2]]
        pairs = zip(ctx.sizes, weights[1::2], strict=True)
        scales = torch.cat([scale.detach().float().expand(n) for n, scale in pairs])
        q, multipliers = torch.empty(rows, k, dtype=torch.int8), torch.empty(rows)
        core.train_quantize(read[0], read[1], act, read[2], eps, q, multipliers)
        outputs = [x.new_empty(rows, n) for n in ctx.sizes]
        for span in spans(rows, len(codes)):
            sums, at = sums_of(q[span], codes.t()), 0
            for y, n in zip(outputs, ctx.sizes, strict=True):
                core.train_output(sums, at, scales[at : at + n], multipliers[span], y[span])
                at += n
        ctx.save_for_backward(*read, q, multipliers, codes, scales)
        ctx.how = act, eps
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Torch) -> tuple[Torch | None, ...]:
        *read, q, multipliers, codes, scales = ctx.saved_tensors
        rows, n = len(q), len(codes)
        reading = Reading(tuple(read), *ctx.how)
        coded, by, divided = torch.empty(rows, n, dtype=torch.int8), torch.empty(rows), grads[0].new_empty(rows, n)
        core.train_output_backward([grad.contiguous() for grad in grads], scales, multipliers, coded, by, divided)
        for span in spans(rows, codes.shape[1]):
            reading.add(span, sums_of(coded[span], codes), by[span])
        of_matrix = divided.t() @ q.to(divided.dtype)
        weight_grads: list[Torch | None] = []
        parts = zip(torch.split(of_matrix, ctx.sizes), torch.split(codes, ctx.sizes), ctx.scale_shapes, strict=True)
        for i, (part, own, shape) in enumerate(parts):
            wanted = ctx.needs_input_grad[6 + 2 * i]
            weight_grads += [part, (part.float() * own).sum(1 if shape else None) if wanted else None]
        return *reading.grads, None, None, *weight_grads


class Turn(Function):
    """RoPE."""

    @staticmethod
    def forward(ctx: Any, x: Torch, positions: Torch, cos: Torch, sin: Torch) -> Torch:
        ctx.save_for_backward(positions, cos, sin)
        return Turn.turned(x.detach().contiguous(), positions, cos, sin, False)

    @staticmethod
    def backward(ctx: Any, grad: Torch) -> tuple[Torch | None, ...]:
        positions, cos, sin = ctx.saved_tensors
        return Turn.turned(grad.contiguous(), positions, cos, sin, True), None, None, None

    @staticmethod
    def turned(x: Torch, positions: Torch, cos: Torch, sin: Torch, backward: bool) -> Torch:
        y = torch.empty_like(x)
        core.train_rope(x, cos, sin, positions, backward, y)
        return y


class Attention(Function):
    """q (T, H D), k and v (T, Hkv D) of sequences of one length -> (T, H D).

    first (rows, length), int32: where the document of a token begins. Blocks of queries multiply the keys up to their
    end only; the heads that share a key head are rows of one product. Probabilities are kept for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Torch, k: Torch, v: Torch, first: Torch, head_dim: int, window: int) -> Torch:
        rows, length = first.shape
        q, keys, values = q.detach(), heads_of(k, rows, head_dim), heads_of(v, rows, head_dim)
        ctx.shape = rows, length, k.shape[1] // head_dim, q.shape[1] // k.shape[1], head_dim
        out, kept = torch.empty_like(q), []
        for start in range(0, length, QUERIES):
            end = min(length, start + QUERIES)
            p = torch.bmm(block_of(q, ctx.shape, start, end), keys[:, :end].mT)
            ctx.how = q.shape[1] // head_dim, window, 1 / math.sqrt(head_dim)
            core.train_softmax(p.view(-1, end), first, ctx.how[0], start, end - start, window, ctx.how[2])
            put_block(out, torch.bmm(p, values[:, :end]), ctx.shape, start, end)
            kept.append(p)
        ctx.save_for_backward(q, keys, values, first, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Torch) -> tuple[Torch | None, ...]:
        q, keys, values, first, *kept = ctx.saved_tensors
        rows, length, _, _, head_dim = ctx.shape
        heads, window, scale = ctx.how
        grad, q_grad = grad.contiguous(), torch.empty_like(q)
        k_grad, v_grad = torch.zeros_like(keys, dtype=torch.float32), torch.zeros_like(values, dtype=torch.float32)
        for start, p in zip(range(0, length, QUERIES), kept, strict=True):
            end = min(length, start + QUERIES)
            out_grad = block_of(grad, ctx.shape, start, end)
            v_grad[:, :end] += torch.bmm(p.mT, out_grad)
            d = torch.bmm(out_grad, values[:, :end].mT)
            core.train_softmax_backward(
                p.view(-1, end), d.view(-1, end), first, heads, start, end - start, window, scale
            )
            k_grad[:, :end] += torch.bmm(d.mT, block_of(q, ctx.shape, start, end))
            put_block(q_grad, torch.bmm(d, keys[:, :end]), ctx.shape, start, end)
        back = [
            y.view(rows, -1, length, head_dim).transpose(1, 2).reshape(rows * length, -1).to(q.dtype)
            for y in (k_grad, v_grad)
        ]
        return q_grad, *back, None, None, None


def heads_of(x: Torch, rows: int, head_dim: int) -> Torch:
    """(T, heads D) -> (rows heads, length, D)."""
    x = x.detach().view(rows, -1, x.shape[1] // head_dim, head_dim).transpose(1, 2)
    return x.reshape(-1, x.shape[2], head_dim)


def block_of(x: Torch, shape: tuple[int, ...], start: int, end: int) -> Torch:
    """(T, heads D) -> (rows kv, group (end - start), D)."""
    rows, length, kv, group, head_dim = shape
    part = x.view(rows, length, kv, group, head_dim)[:, start:end].permute(0, 2, 3, 1, 4)
    return part.reshape(rows * kv, group * (end - start), head_dim)


def put_block(x: Torch, part: Torch, shape: tuple[int, ...], start: int, end: int) -> None:
    rows, length, kv, group, head_dim = shape
    part = part.view(rows, kv, group, end - start, head_dim).permute(0, 3, 1, 2, 4)
    x.view(rows, length, kv, group, head_dim)[:, start:end] = part


class HeadLoss(Function):
    """Nats of the targets (T,), summed: x (T, k) through the head (vocab, k), whose logits are made part by part, in
    the forward pass with their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Torch, head: Torch, targets: Torch) -> Torch:
        x, head, wanted = x.detach(), head.detach(), any(ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.float64)
        x_grad = torch.empty_like(x)
        head_grad = torch.zeros_like(head, dtype=torch.float32)
        for span in spans(len(x), len(head), LOGITS):
            logits = x[span] @ head.t()
            sums, losses = torch.empty(len(logits)), torch.empty(len(logits))
            core.train_cross_entropy(logits, targets[span], sums, losses)
            total += losses.sum(dtype=torch.float64)
            if wanted:
                core.train_cross_entropy_backward(logits, targets[span], sums, 1.0, logits)
                torch.mm(logits, head, out=x_grad[span])
                head_grad += logits.t() @ x[span]
        if wanted:
            ctx.save_for_backward(x_grad, head_grad.to(head.dtype))
        return total.float()

    @staticmethod
    def backward(ctx: Any, grad: Torch) -> tuple[Torch | None, ...]:
        x_grad, head_grad = ctx.saved_tensors
        return x_grad * float(grad), head_grad * float(grad), None


def head_loss(x: Any, head: Torch, targets: Torch) -> Torch:
    return cast(Torch, HeadLoss.apply(whole(x), head, targets.reshape(-1)))  # type: ignore[no-untyped-call]


def first_of(documents: Torch) -> Torch:
    """Numbers of documents (rows, length), never descending -> where the document of each token begins, int32."""
    at = torch.arange(documents.shape[1], device=documents.device)
    begins = documents[:, 1:] != documents[:, :-1]
    starts = torch.where(torch.nn.functional.pad(begins, (1, 0)), at, 0)
    return starts.cummax(1).values.int()
