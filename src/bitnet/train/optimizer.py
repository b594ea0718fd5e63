"""AdamW for all, or Muon for the hidden matrices and AdamW for the rest: embedding, head, norms and scales."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from bitnet.errors import ParameterError
from bitnet.train.parallel import shared_like, whole


@dataclass(frozen=True, slots=True)
class Rates:
    """muon, adam: full learning rates. weight_decay: of matrices. clip: the largest norm of the gradients that Adam
    uses, all together; 0: any. Muon's updates have the size of its rate, whatever the gradient's."""

    kind: Literal["muon", "adamw"] = "muon"
    muon: float = 0.02
    adam: float = 3e-3
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("muon", "adamw"):
            raise ParameterError(f"The optimizer is {self.kind!r}; expected 'muon' or 'adamw'.")
        for name in ("muon", "adam", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ParameterError(f"{name} is {getattr(self, name)}; expected a number that is not negative.")
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ParameterError(f"{name} is {getattr(self, name)}; expected 0 or more, and less than 1.")


class Muon(Optimizer):
    """Momentum made orthogonal: Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.

    Matrices of one shape are made orthogonal together.
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for master in group["params"]:
                if master.grad is not None:
                    by_shape.setdefault(master.shape, []).append(master)
            for (n, k), masters in by_shape.items():
                nesterov = torch.stack([whole(self.momentum(master, group["momentum"])) for master in masters])
                for master, direction in zip(masters, orthogonalize(nesterov), strict=True):
                    master.mul_(1 - group["lr"] * group["weight_decay"])
                    master.add_(
                        shared_like(direction.to(master.dtype), master), alpha=-group["lr"] * max(1, n / k) ** 0.5
                    )

    def momentum(self, master: Tensor, share: float) -> Tensor:
        state = self.state[master]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(master)
        assert master.grad is not None
        momentum: Tensor = state["momentum"].lerp_(master.grad, 1 - share)
        return master.grad.lerp(momentum, share)


def orthogonalize(matrices: Tensor) -> Tensor:
    """The orthogonal factor of each matrix (b, n, k), roughly: Newton-Schulz, five steps in bf16.

    Coefficients: see Muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[1] <= matrices.shape[2]
    x: Tensor = matrices.bfloat16() if wide else matrices.bfloat16().mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Optimizers:
    """The optimizers of a module's parameters that want gradients, as one."""

    def __init__(self, module: nn.Module, rates: Rates) -> None:
        self.rates = rates
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        hidden = [p for name, p in named if is_hidden(name, p)]
        tables = [p for name, p in named if p.ndim == 2 and not is_hidden(name, p)]
        rest = [p for _, p in named if p.ndim != 2]
        decayed: dict[str, Any] = {"weight_decay": rates.weight_decay}
        plain: dict[str, Any] = {"weight_decay": 0.0}
        by_muon = hidden if rates.kind == "muon" else []
        # As in the built-in model's recipe Muon leaves embeddings without decay; AdamW alone decays all matrices.
        groups = [{"params": tables, **(plain if by_muon else decayed)}, {"params": rest, **plain}]
        if rates.kind == "adamw":
            groups.append({"params": hidden, **decayed})
        groups = [group for group in groups if group["params"]]
        self.all: list[Optimizer] = []
        if by_muon:
            self.all.append(Muon([{"params": by_muon, **decayed}], rates.muon, rates.momentum))
        if groups:
            self.all.append(AdamW(groups, rates.adam, (rates.beta1, rates.beta2), fused=True))
        self.clipped = [p for group in groups for p in group["params"]]
        self.full = [[(group["lr"], group["weight_decay"]) for group in each.param_groups] for each in self.all]

    def step(self, rate: float, decay: float) -> None:
        """One update at these shares of the full learning rates and of the weight decay."""
        if self.rates.clip:
            nn.utils.clip_grad_norm_(self.clipped, self.rates.clip)
        for optimizer, full in zip(self.all, self.full, strict=True):
            for group, (lr, weight_decay) in zip(optimizer.param_groups, full, strict=True):
                group["lr"], group["weight_decay"] = rate * lr, decay * weight_decay
            optimizer.step()

    def state(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.all]

    def restore(self, states: Iterable[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            mine = {
                number: {name: shared_like(value, parameters[number]) for name, value in of_one.items()}
                for number, of_one in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": mine})


def is_hidden(name: str, parameter: Tensor) -> bool:
    """Whether it is a matrix from layer to layer: neither a table of tokens or positions nor a trained scale."""
    return (
        parameter.ndim == 2
        and name.endswith(".weight")
        and not any(t in name for t in ("embed", "lm_head", "wte", "wpe"))
    )
