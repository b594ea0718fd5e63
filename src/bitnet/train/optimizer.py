"""Muon for the ternary matrices, Adam for embedding and norms, and the schedule of their learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bitnet.train.parameters import is_ternary


@dataclass(slots=True)
class Schedule:
    """A trapezoid over a clock that counts seconds of training or steps: rise, hold, fall to zero at `end`."""

    end: float
    fall: float
    rise: float

    @classmethod
    def over(cls, budget: float) -> Schedule:
        return cls(end=budget, fall=0.5 * budget, rise=0.015 * budget)

    def rate(self, clock: float) -> float:
        """The share of the full learning rate at `clock`."""
        return max(0.0, min(1.0, (clock + 1) / (self.rise + 1), (self.end - clock) / self.fall))

    def finish(self, clock: float, within: float) -> None:
        """Fall from where the rate is now to zero in `within` more units."""
        self.fall = within / max(self.rate(clock), 1e-3)
        self.end = clock + within

    def falling(self, clock: float) -> bool:
        return clock > self.end - self.fall


@dataclass(frozen=True, slots=True)
class Rates:
    muon: float = 0.02
    adam: float = 3e-3
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1  # of the ternary matrices; none once the rate falls
    clip: float = 1.0


class Optimizer:
    """Updates float32 masters in place, by name."""

    def __init__(self, masters: dict[str, Tensor], rates: Rates | None = None) -> None:
        self.masters, self.rates, self.step = masters, rates or Rates(), 0
        self.momentum = {name: torch.zeros_like(m) for name, m in masters.items() if is_ternary(name)}
        self.first = {name: torch.zeros_like(m) for name, m in masters.items() if not is_ternary(name)}
        self.second = {name: torch.zeros_like(m) for name, m in self.first.items()}

    def update(self, gradients: dict[str, Tensor], rate: float, decay: bool) -> None:
        """One step at `rate` of the full learning rates."""
        self.step += 1
        self.update_ternary(gradients, rate * self.rates.muon, self.rates.weight_decay if decay else 0.0)
        self.update_others(gradients, rate * self.rates.adam)

    def update_ternary(self, gradients: dict[str, Tensor], rate: float, weight_decay: float) -> None:
        by_shape: dict[torch.Size, list[str]] = {}
        for name, momentum in self.momentum.items():
            momentum.lerp_(gradients[name], 1 - self.rates.momentum)
            by_shape.setdefault(momentum.shape, []).append(name)
        for (n, k), names in by_shape.items():
            nesterov = [gradients[name].lerp(self.momentum[name], self.rates.momentum) for name in names]
            for name, direction in zip(names, orthogonalize(torch.stack(nesterov)), strict=True):
                master = self.masters[name].mul_(1 - rate * weight_decay)
                master.add_(direction.float(), alpha=-rate * max(1, n / k) ** 0.5)

    def update_others(self, gradients: dict[str, Tensor], rate: float) -> None:
        r = self.rates
        norm = torch.stack([gradients[name].norm() for name in self.first]).norm()
        shrink = min(1.0, r.clip / (float(norm) + 1e-6))
        for name, first in self.first.items():
            gradient = gradients[name] * shrink
            first.lerp_(gradient, 1 - r.beta1)
            second = self.second[name].lerp_(gradient.square(), 1 - r.beta2)
            unbiased = second.div(1 - r.beta2**self.step).sqrt_().add_(1e-8)
            self.masters[name].addcdiv_(first, unbiased, value=-rate / (1 - r.beta1**self.step))

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "momentum": self.momentum, "first": self.first, "second": self.second}

    def restore(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.momentum, self.first, self.second = state["momentum"], state["first"], state["second"]


def orthogonalize(matrices: Tensor) -> Tensor:
    """The orthogonal factor of each matrix (b, n, k), roughly: Newton-Schulz, five steps in bf16.

    Coefficients: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[1] <= matrices.shape[2]
    x: Tensor = matrices.bfloat16() if wide else matrices.bfloat16().mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
