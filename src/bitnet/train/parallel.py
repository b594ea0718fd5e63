"""The processes that train one model together: those that torchrun started, or this one alone.

Every process works on its share of a step's rows. Either each holds the whole model and gradients are added up, or each
keeps a share of the masters, of their gradients and of the optimizer's states (FSDP), and the masters are put together
for the step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor


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
            # All others wait while the first process tokenises the data.
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1))
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

    def shard(self, module: nn.Module) -> None:
        """Leave this process its share of every parameter; `loss` and `evaluate` put them together and take them apart
        again, and gradients become the mean of those of all processes."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        fully_shard(module, mesh=init_device_mesh(self.device.type, (self.size,)))
        for name in ("loss", "evaluate"):
            if hasattr(module, name):
                register_fsdp_forward_method(module, name)


def whole(value: Any) -> Any:
    """`value` with every tensor in it that is shared by the processes put together; all of them call this."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {key: whole(entry) for key, entry in value.items()}
    return [whole(entry) for entry in value] if isinstance(value, list) else value


def shared_like(value: Any, parameter: Tensor) -> Any:
    """This process's share of a tensor that belongs to `parameter` and has its shape."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
