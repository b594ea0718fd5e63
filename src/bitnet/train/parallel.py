"""The processes that train one model together: those that torchrun started, or this one alone.

Every process holds the whole model and works on its share of a step's rows; gradients are added up.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True, slots=True)
class Group:
    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Group:
        """By the environment that torchrun sets; over NCCL where there are GPUs, else over gloo."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def device(self) -> torch.device:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor becomes the sum of that of all processes, the same bits on every one."""
        given = list(tensors)
        if self.size == 1 or not given:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in given])
        distributed.all_reduce(flat)
        parts = torch.split(flat, [tensor.numel() for tensor in given])
        for tensor, part in zip(given, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()
