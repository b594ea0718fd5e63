"""What changes in the course of a run: learning rate, weight decay, and how far weights are rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from bitnet.errors import ParameterError

Kind = Literal["trapezoid", "cosine", "linear", "constant", "two-stage"]


@dataclass(slots=True)
class Schedule:
    """Over a clock that counts steps, or seconds of training, up to `end`.

    trapezoid  rise, hold, fall to zero over the last `fall`; no weight decay while falling
    cosine     rise, then half a cosine down to zero
    linear     rise, then straight down to zero
    constant   rise, then hold
    two-stage  BitNet b1.58 2B4T (arXiv:2504.12285, section 2.2): high and falling slowly for the first half, then from
               a third down to zero without weight decay

    rise, fall: shares of the run. blend: share of the run over which weights and activations go from float to rounded.
    """

    end: float
    kind: Kind = "trapezoid"
    rise: float = 0.015
    fall: float = 0.5
    blend: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ParameterError(f"The schedule is {self.kind!r}; expected {', '.join(get_args(Kind))}.")
        for name in ("rise", "fall", "blend"):
            if not 0 <= getattr(self, name) <= 1:
                raise ParameterError(f"{name} is {getattr(self, name)}; expected a share of the run, from 0 to 1.")

    def rate(self, clock: float) -> float:
        """The share of the full learning rate at `clock`."""
        rising = (clock + 1) / (self.rise * self.end + 1)
        return max(0.0, min(1.0, rising, self._falling(clock)))

    def _falling(self, clock: float) -> float:
        left = max(0.0, 1 - clock / self.end)
        if self.kind == "trapezoid":
            return left / self.fall if self.fall else 1.0
        if self.kind == "cosine":
            return 0.5 - 0.5 * math.cos(math.pi * left)
        if self.kind == "linear":
            return left
        if self.kind == "two-stage":  # 1.5e-3 to 8e-4, then 5e-4 to 0
            return 8 / 15 + (left - 0.5) * 14 / 15 if left > 0.5 else left * 2 / 3
        return 1.0

    def decay(self, clock: float) -> float:
        """The share of the full weight decay."""
        last = {"trapezoid": self.fall, "two-stage": 0.5}.get(self.kind, 0.0)
        return 0.0 if clock > self.end * (1 - last) else 1.0

    def rounding(self, clock: float) -> float:
        """How far weights and activations are rounded, 1: wholly."""
        return min(1.0, (clock + 1) / (self.blend * self.end)) if self.blend else 1.0

    def finish(self, clock: float, within: float) -> None:
        """Fall from where the rate is now to zero in `within` more units."""
        rate = max(self.rate(clock), 1e-3)
        self.kind, self.end, self.rise = "trapezoid", clock + within, 0.0
        self.fall = min(1.0, within / rate / self.end)
