"""How projections are quantised in training: the rules of quant/threshold.py with gradients, and what is deployed.

Roundings are passed straight through: forward computes with the rounded matrix, backward hands its gradient to the
float master. A scale that is trained gets the sum of that gradient over the weights it multiplies, each times its code
(arXiv:1612.01064, with one scale for both signs).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnet.backends.torch import TINY, Quantized
from bitnet.errors import ParameterError
from bitnet.quant.tensor import DenseTensor, TernaryTensor
from bitnet.quant.tensor import Tensor as Stored
from bitnet.quant.threshold import Rule, unit_count

TERNARY, BITS, ACTIVATIONS = 1.58, (1.58, 4.0, 8.0, 16.0), (4, 8, 16)
BLOCK = 32  # columns that share a scale where weights have 4 or 8 bits, as in GGUF's Q4_0 and Q8_0


@dataclass(frozen=True, slots=True)
class Recipe:
    """rule: of ternary weights. activations: bits of what they read. trainable_scale: scales start as the rule says and
    are trained. mixed: bits of the weights whose name a regular expression is found in, the first that is: 1.58, 4, 8
    or 16; weights of 4, 8 and 16 bits read float activations, as in the engine."""

    rule: Rule = field(default_factory=Rule)
    activations: int = 8
    trainable_scale: bool = False
    mixed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.activations not in ACTIVATIONS:
            raise ParameterError(f"Activations have {self.activations} bits; expected 4, 8 or 16.")
        for pattern, bits in self.mixed.items():
            if bits not in BITS:
                raise ParameterError(f"mixed: {pattern!r} has {bits} bits; expected 1.58, 4, 8 or 16.")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ParameterError(f"mixed: {pattern!r} is no regular expression: {error}.") from error

    def bits(self, name: str) -> float:
        return next((bits for pattern, bits in self.mixed.items() if re.search(pattern, name)), TERNARY)

    def refuse_unmatched(self, names: Iterable[str]) -> None:
        """ParameterError where an expression of `mixed` is found in none of the names: it is misspelt."""
        names = list(names)
        for pattern in self.mixed:
            if not any(re.search(pattern, name) for name in names):
                known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
                raise ParameterError(f"mixed: {pattern!r} is found in no weight's name.", f"They end in {known}.")

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """ParameterError where a matrix of this shape cannot be quantised so."""
        bits = self.bits(name)
        if bits == TERNARY:
            unit_count(shape[0], shape[1], self.rule.group)
        elif bits < 16 and shape[1] % BLOCK:
            raise ParameterError(f"{name} has rows of {shape[1]}; {bits:g} bits take multiples of {BLOCK}.")


FLOAT = Recipe(activations=16, mixed={"": 16.0})  # a teacher: nothing is rounded


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """In plain values, for a file."""
    return {**asdict(recipe), "mixed": dict(recipe.mixed)}


def recipe_of(values: Mapping[str, Any]) -> Recipe:
    return Recipe(**{**values, "rule": Rule(**values["rule"])})


class StraightThrough(torch.autograd.Function):
    """(master, value) -> value, whose gradient is the master's."""

    @staticmethod
    def forward(ctx: Any, master: Tensor, value: Tensor) -> Tensor:
        ctx.dtype = master.dtype
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


def quantize(
    master: Tensor,
    bits: float,
    recipe: Recipe,
    dtype: torch.dtype,
    blend: Tensor | None = None,
    scales: Tensor | None = None,
) -> Quantized | Tensor:
    """A master (n, k) as a step computes with it, in `dtype`.

    blend: how far it is rounded, (), for a warm-up from float; None: wholly. scales: the trained ones.
    """
    if bits == 16:
        return master.to(dtype)
    if bits != TERNARY:
        rounded = StraightThrough.apply(master, in_blocks(master.detach(), bits))  # type: ignore[no-untyped-call]
        return (rounded if blend is None else torch.lerp(master, rounded, blend)).to(dtype)
    with torch.no_grad():
        codes, by_rule = ternarize(master, recipe.rule)
    scales = held(by_rule if scales is None else scales.abs().clamp(min=TINY), recipe.rule)
    if blend is None and scales.ndim < 2:
        through = StraightThrough.apply(master, codes.to(dtype))  # type: ignore[no-untyped-call]
        return Quantized(through, scales, recipe.activations, exact=True)
    wide = spread(scales, master.shape)
    # The trained scale's own gradient is that of codes * scale; the master's passes by.
    rounded = StraightThrough.apply(master, codes * wide.detach()) + codes * (wide - wide.detach())  # type: ignore[no-untyped-call]
    matrix = rounded if blend is None else torch.lerp(master, rounded, blend)
    return Quantized(matrix.to(dtype), torch.ones((), device=master.device), recipe.activations, blend)


def ternarize(master: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Codes (n, k) and scales (), (n,) or (n, groups) as quant.threshold.ternarize has them."""
    n, k = master.shape
    units = master.reshape(unit_count(n, k, rule.group), -1)
    sizes = units.abs()
    means = sizes.mean(1, dtype=torch.float64)
    if rule.name == "absmean":
        scales = means.float().clamp(min=TINY)
        codes = (units / scales[:, None]).round().clamp(-1, 1)
    else:
        kept = sizes > (rule.alpha * means)[:, None] if rule.name == "threshold" else best_kept(sizes)
        counts = kept.sum(1).clamp(min=1)
        scales = (torch.where(kept, sizes, 0.0).sum(1, dtype=torch.float64) / counts).float()
        codes = units.sign() * kept
    shape = () if rule.group == "tensor" else (n,) if len(units) == n else (n, -1)
    return codes.view(n, k), scales.view(shape)


def best_kept(sizes: Tensor) -> Tensor:
    """Which weights of each unit (m, weights) are kept for the least squared error; see quant.threshold.least_kept."""
    ordered = sizes.sort(1, descending=True).values
    sums = ordered.cumsum(1, dtype=torch.float64)
    best = (sums.square() / torch.arange(1, sizes.shape[1] + 1, device=sizes.device)).argmax(1, keepdim=True)
    return (sizes >= ordered.gather(1, best)) & (sizes > 0)


def held(scales: Tensor, rule: Rule) -> Tensor:
    """As files hold them: those of groups as float16."""
    return scales.half().float() if isinstance(rule.group, int) else scales


def spread(scales: Tensor, shape: torch.Size) -> Tensor:
    """Scales (), (n,) or (n, groups) for each weight of (n, k)."""
    if scales.ndim < 2:
        return scales if scales.ndim == 0 else scales[:, None]
    return scales.repeat_interleave(shape[1] // scales.shape[1], 1)


def block_codes(master: Tensor, bits: float) -> tuple[Tensor, Tensor]:
    """Whole numbers (n, k / 32, 32) and float16 scales (n, k / 32) of 4 or 8 bits."""
    most = 2.0 ** (bits - 1) - 1
    blocks = master.float().view(len(master), -1, BLOCK)
    scales = (blocks.abs().amax(-1) / most).half()
    wide = scales.float()[..., None]
    return torch.where(wide > 0, blocks / wide, 0.0).round().clamp(-most, most), scales


def in_blocks(master: Tensor, bits: float) -> Tensor:
    codes, scales = block_codes(master, bits)
    return (codes * scales.float()[..., None]).view(master.shape)


@torch.no_grad()
def deployed(master: Tensor, bits: float, recipe: Recipe, scales: Tensor | None = None) -> Stored:
    """What the engine gets: the very codes and scales that the last step computed with."""
    master = master.detach().float().cpu()
    if bits == 16:
        return DenseTensor(master.numpy())
    if bits != TERNARY:
        codes, halves = block_codes(master, bits)
        whole = codes.to(torch.int8).numpy()
        if bits == 8:
            return DenseTensor(whole.reshape(master.shape), "Q8_0", halves.numpy())
        return DenseTensor(q4_0(whole, halves.numpy()), "Q4_0")
    codes, by_rule = ternarize(master, recipe.rule)
    kept = by_rule if scales is None else scales.detach().float().cpu().abs().clamp(min=TINY)
    return TernaryTensor(codes.to(torch.int8).numpy(), held(kept, recipe.rule).numpy())


def q4_0(codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """GGUF's blocks of 18 bytes: a float16 scale, then codes + 8, of which byte j holds j (low) and j + 16 (high)."""
    shifted = (codes + 8).astype(np.uint8)
    nibbles = shifted[..., :16] | shifted[..., 16:] << 4
    return np.concatenate((scales[..., None].view(np.uint8), nibbles), -1).reshape(len(codes), -1)
