"""Distillation from a float teacher: its logits, and how its tokens relate to each other.

Source: "BitNet Distillation" (arXiv:2510.13998): L = L_CE + logits * L_LD + attention * L_AD, after sub-norms have been
put in (see described.with_sub_norms) and some training on plain text. L_AD is MiniLM's (arXiv:2012.15828): of one
layer, softmax(A A^T / sqrt(d)) of the teacher's and the student's queries, keys and values.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitnet.errors import ParameterError
from bitnet.train.model import Batch, TernaryLM, document_mask, nats


@dataclass(frozen=True, slots=True)
class Weights:
    """logits, attention: how much each counts beside the cross-entropy; 0 leaves it out. temperature: of both
    distributions over tokens. layer: whose relations, of the student; negative: from the end. heads: into how many the
    queries, keys and values are cut for them; 0: as many as the student's key-value heads."""

    logits: float = 10.0
    attention: float = 1.0
    temperature: float = 5.0
    layer: int = -1
    heads: int = 0


class Distillation(nn.Module):
    """A student with the loss of its teacher; what is saved and measured is the student alone."""

    def __init__(self, student: TernaryLM, teacher: TernaryLM, weights: Weights | None = None) -> None:
        super().__init__()
        self.student, self.weights = student, weights or Weights()
        self._teacher = [teacher.eval().requires_grad_(False)]  # in a list: none of this module's parameters
        ours, theirs = student.config, teacher.config
        if ours.vocab_size != theirs.vocab_size:
            raise ParameterError(f"The teacher knows {theirs.vocab_size} tokens, the student {ours.vocab_size}.")
        if not -ours.num_hidden_layers <= self.weights.layer < ours.num_hidden_layers:
            raise ParameterError(f"There is no layer {self.weights.layer}; the student has {ours.num_hidden_layers}.")
        self.layer = self.weights.layer % ours.num_hidden_layers
        # The teacher's at the same share of its depth.
        self.teachers_layer = (self.layer + 1) * theirs.num_hidden_layers // ours.num_hidden_layers - 1
        self.heads = self.weights.heads or ours.num_key_value_heads
        for config in (ours, theirs):
            for count in (config.num_attention_heads, config.num_key_value_heads):
                if count * config.head_dim % self.heads:
                    raise ParameterError(f"{count} heads of {config.head_dim} cannot be cut into {self.heads}.")

    @property
    def teacher(self) -> TernaryLM:
        return self._teacher[0]

    def loss(self, batch: Batch) -> Tensor:
        """As TernaryLM.loss, with what the teacher adds, each summed over the positions that have a target."""
        mask = document_mask(batch["documents"])
        seen: dict[int, tuple[Tensor, ...]] = {self.layer: ()} if self.weights.attention else {}
        told: dict[int, tuple[Tensor, ...]] = {self.teachers_layer: ()} if self.weights.attention else {}
        logits = self.student(batch["ids"], batch["documents"], seen)
        with torch.no_grad():
            wanted = self.teacher.to(logits.device)(batch["ids"], batch["documents"], told)
        counts = batch["targets"] >= 0
        loss = nats(logits, batch["targets"])
        if self.weights.logits:
            loss = loss + self.weights.logits * divergence(wanted, logits, counts, self.weights.temperature)
        if self.weights.attention:
            pairs = zip(told[self.teachers_layer], seen[self.layer], strict=True)
            parts = [relation_divergence(t, s, mask, counts, self.heads) for t, s in pairs]
            loss = loss + self.weights.attention * sum(parts)
        return loss

    def evaluate(self, batch: Batch) -> Tensor:
        return self.student.loss(batch)

    def fused(self, device: torch.device) -> bool:
        return self.student.fused(device)

    def step(self) -> AbstractContextManager[None]:
        return self.student.step()

    def in_float32(self) -> AbstractContextManager[None]:
        return self.student.in_float32()

    def about(self) -> dict[str, Any]:
        return self.student.about()

    @property
    def blend(self) -> Tensor | None:
        return self.student.blend

    @blend.setter
    def blend(self, blend: Tensor | None) -> None:
        self.student.blend = blend

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.student.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.student.load_state_dict(*args, **kwargs)


def divergence(teacher: Tensor, student: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """KL of the teacher's tokens from the student's, logits (rows, length, vocab), summed where `counts`."""
    p, q = (functional.log_softmax(x.float() / temperature, -1) for x in (teacher, student))
    return ((p.exp() * (p - q)).sum(-1) * counts).sum()


def relation_divergence(teacher: Tensor, student: Tensor, mask: Tensor, counts: Tensor, heads: int) -> Tensor:
    """KL of the teacher's relations from the student's, mean over heads, summed where `counts`.

    teacher, student: (rows, H, length, D) each with its own H and D.
    """
    p, q = (relations(x, mask, heads) for x in (teacher, student))
    found = (p.exp() * (p - q)).masked_fill(~mask, 0).sum(-1).mean(1)  # (rows, length)
    return (found * counts).sum()


def relations(x: Tensor, mask: Tensor, heads: int) -> Tensor:
    """log softmax(A A^T / sqrt(d)) (rows, heads, length, length) over what each token may look at."""
    rows, _, length, _ = x.shape
    cut = x.float().transpose(1, 2).reshape(rows, length, heads, -1).transpose(1, 2)
    scores = cut @ cut.mT / math.sqrt(cut.shape[-1])
    return functional.log_softmax(scores.masked_fill(~mask, -1e9), -1)
