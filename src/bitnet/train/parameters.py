"""The float masters of a model in training and the ternary weights that stand for them during a step."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitnet.backends.torch import Packed, Ternary, TorchOps, ternarize
from bitnet.models import bitnet
from bitnet.models.decoder import Config
from bitnet.train.vocabulary import BEGIN, END

Weights = dict[str, Tensor | Ternary]


class Parameters:
    """masters: float32, by the model's names. leaves: what a step computes with and collects gradients on."""

    def __init__(self, config: Config, seed: int) -> None:
        self.config = config
        generator = torch.Generator().manual_seed(seed)
        self.masters = {name: start(name, shape, generator) for name, shape in bitnet.shapes(config).items()}

    def refresh(self, dtype: torch.dtype) -> Weights:
        """Ternarise every projection, once for all microbatches of a step; gradients start from nothing."""
        weights: Weights = {}
        self.leaves: dict[str, Tensor] = {}
        for name, master in self.masters.items():
            if is_ternary(name):
                ternary = ternarize(master, dtype)
                weights[name], self.leaves[name] = ternary, ternary.codes.requires_grad_()
            else:
                leaf = master.to(dtype if master.dim() == 2 else torch.float32, copy=True)
                weights[name] = self.leaves[name] = leaf.requires_grad_()
        weights["lm_head"] = weights["embed_tokens"]
        return weights

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of every master: straight through the rounding, so that of its leaf."""
        return {name: leaf.grad.float() for name, leaf in self.leaves.items() if leaf.grad is not None}


def is_ternary(name: str) -> bool:
    return name.endswith("_proj")


def start(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms at one; matrices normal: the embedding small, as it is the output head too."""
    if len(shape) == 1:
        return torch.ones(shape)
    deviation = 1 / math.sqrt(shape[1])
    return torch.randn(shape, generator=generator) * deviation


def document_mask(ids: Tensor) -> Tensor:
    """(rows, length) -> (rows, 1, length, length): True where a token may look, its own document up to itself."""
    document = (ids == BEGIN).cumsum(1)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    return ((document[:, :, None] == document[:, None, :]) & causal)[:, None]


def targets_of(ids: Tensor) -> Tensor:
    """The next token of each; -100 (uncounted) where it would begin another document or is filling."""
    targets = ids.roll(-1, 1)
    targets[:, -1] = -100
    return targets.masked_fill((ids == END) | (targets == BEGIN), -100)


def loss(config: Config, ops: TorchOps, weights: Weights, ids: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy (nats per token) of windows ids (rows, length); targets of -100 do not count."""
    rows, length = ids.shape
    positions = torch.arange(length).repeat(rows)
    step = TrainStep(ids.reshape(-1), positions)
    logits = bitnet.Model(config, weights, ops)(step, Packed(rows, mask))  # type: ignore[arg-type]
    return torch.nn.functional.cross_entropy(logits.float(), targets.reshape(-1), ignore_index=-100)


class TrainStep:
    """The part of backends.base.Step that training needs, as tensors; every row's logits are wanted."""

    want, top = None, 0

    def __init__(self, ids: Tensor, positions: Tensor) -> None:
        self.ids, self.positions = ids, positions
