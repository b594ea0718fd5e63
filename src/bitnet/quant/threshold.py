"""Float matrices to ternary ones: where to cut, and what the scale of the rest is.

A unit is what shares a scale: the tensor, a row, or a group of columns of a row. Every rule keeps the sign of the
weights above a threshold T of its unit and drops the others; the rules differ in T and in the scale.

absmean    T = mean|w| / 2, scale mean|w|: BitNet b1.58 (arXiv:2402.17764)
threshold  T = alpha * mean|w|, scale mean of |w| above T: Ternary Weight Networks (arXiv:1605.04711), alpha 0.7
optimal    the T that leaves the least squared error, found by sorting

For given codes the mean of |w| above T is the scale of least squares, so the last two minimise the same error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ParameterError
from bitnet.quant import rules
from bitnet.quant.tensor import TernaryTensor

Floats = NDArray[np.float32]
Name = Literal["absmean", "threshold", "optimal"]
Group = Literal["tensor", "row"] | int
_PIECE = 1 << 22  # weights of several units worked on at a time


@dataclass(frozen=True, slots=True)
class Rule:
    """name: one of the three above. alpha: of "threshold". group: what shares a scale; a number: so many columns."""

    name: Name = "absmean"
    alpha: float = 0.7
    group: Group = "tensor"

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise ParameterError(f"The rule is {self.name!r}; expected {', '.join(get_args(Name))}.")
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ParameterError(f"alpha is {self.alpha}; expected a number that is not negative.")
        if self.group not in ("tensor", "row") and (not isinstance(self.group, int) or self.group < 1):
            raise ParameterError(f"group is {self.group!r}; expected 'tensor', 'row' or a number of columns.")

    def __str__(self) -> str:
        return f"{self.name} {self.alpha:g}" if self.name == "threshold" else self.name


def ternarize(weight: Floats, rule: Rule) -> TernaryTensor:
    """`weight` (n, k) by `rule`, its scales of shape (), (n,) or (n, k // group).

    ParameterError where the group does not divide the rows, or a weight is not finite.
    """
    if (rule.name, rule.group) == ("absmean", "tensor"):  # to the last bit what loading makes of masters
        if not np.isfinite(weight).all():
            raise ParameterError("A weight is not finite.")
        return rules.ternarize(weight)
    n, k = weight.shape
    units = np.ascontiguousarray(weight, np.float32).reshape(unit_count(n, k, rule.group), -1)
    codes, scales = np.empty(units.shape, np.int8), np.empty(len(units), np.float32)
    step = max(1, _PIECE // units.shape[1])
    for start in range(0, len(units), step):
        some = slice(start, start + step)
        codes[some], scales[some] = _ternarize_units(units[some], rule)
    shape = () if rule.group == "tensor" else (n,) if len(units) == n else (n, -1)
    return TernaryTensor(codes.reshape(n, k), scales.reshape(shape))


def unit_count(n: int, k: int, group: Group) -> int:
    if isinstance(group, str):
        return 1 if group == "tensor" else n
    if k % group:
        raise ParameterError(f"Rows of {k} do not divide into groups of {group}.", "Take a divisor, 'row' or 'tensor'.")
    return n * (k // group)


def _ternarize_units(units: Floats, rule: Rule) -> tuple[NDArray[np.int8], Floats]:
    """Units (m, weights) to codes of that shape and scales (m,)."""
    sizes = np.abs(units)
    means = sizes.mean(axis=1, dtype=np.float64)
    if not np.isfinite(means).all():
        raise ParameterError("A weight is not finite.")
    if rule.name == "absmean":
        scales = np.maximum(means.astype(np.float32), rules.SMALLEST)
        return np.clip(np.rint(units / scales[:, None]), -1, 1).astype(np.int8), scales
    if rule.name == "threshold":
        kept = sizes > (rule.alpha * means)[:, None]
    else:
        kept = (sizes >= least_kept(sizes)[:, None]) & (sizes > 0)
    counts = np.maximum(kept.sum(axis=1), 1)
    scales = (np.where(kept, sizes, 0).sum(axis=1, dtype=np.float64) / counts).astype(np.float32)
    return (np.sign(units) * kept).astype(np.int8), scales


def least_kept(sizes: Floats) -> Floats:
    """The smallest |w| that each unit (m, weights) keeps for the least squared error, (m,).

    With the j largest kept, their sum being S, the best scale is S / j and the error sum(w^2) - S^2 / j. Among equal
    weights that is convex in j, so none of them is parted from the others.
    """
    ordered = -np.sort(-sizes, axis=1)
    sums = ordered.cumsum(axis=1, dtype=np.float64)
    best = (np.square(sums) / np.arange(1, sizes.shape[1] + 1)).argmax(axis=1)
    least: Floats = np.take_along_axis(ordered, best[:, None], axis=1)[:, 0]
    return least
