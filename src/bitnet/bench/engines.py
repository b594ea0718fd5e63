"""What runs a test: this engine, in this process, or a peer in a process of its own."""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from math import prod
from typing import Any

from bitnet import models
from bitnet.backends.base import BLOCK_SIZE, Ops
from bitnet.bench.conditions import PeakMemory, build
from bitnet.bench.machine import isa, packings, use_threads
from bitnet.bench.results import Facts
from bitnet.bench.speed import (
    Run,
    Sample,
    Test,
    multiply_adds,
    position_bytes,
    screen_bytes,
    stored_bytes,
    weight_bytes,
)
from bitnet.engine.runner import Runner
from bitnet.formats import Checkpoint
from bitnet.models import Decoder
from bitnet.models.load import Progress
from bitnet.models.synthetic import SyntheticCheckpoint


class Engine(ABC):
    """A loaded model that reads and generates the same token ids as every other one."""

    facts: Facts

    @abstractmethod
    def timed(self, test: Test, threads: int) -> Sample:
        """One repetition."""

    @abstractmethod
    def peak_rss(self) -> int | None:
        """The most bytes that were resident at once, from before loading until now; None where nobody can tell."""

    @abstractmethod
    def close(self) -> None:
        """Give the memory back."""


class Bitnet(Engine):
    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        positions: int,
        chunk: int,
        kv: str,
        head: str,
        ops: Ops,
        force: bool,
        progress: Progress,
    ) -> None:
        """positions: the most that a test takes."""
        self._backend, self._chunk = ops.name, chunk
        self._peak = PeakMemory()
        start = time.perf_counter()
        model = models.load(checkpoint, ops, progress, force, head)
        self._blocks = -(-(positions + 1) // BLOCK_SIZE)
        self._runner: Runner | None = Runner(model, self._blocks, kv)
        self._known = 0  # positions in the cache: every test has the same tokens there, so a depth is read once
        loaded = None if isinstance(checkpoint, SyntheticCheckpoint) else time.perf_counter() - start
        self.facts = Facts(
            engine="bitnet",
            engine_version=build(),
            backends="CPU" if model.ops.name == "cpu" else model.ops.name,
            isa=isa(model.ops.name),
            weights=packings(model.ops.name, model),
            **described(checkpoint),
            type_kv=kv,
            head="screen" if screen_bytes(model) else "full",
            load_s=loaded,
            weight_bytes=weight_bytes(model),
            resident_bytes=resident_bytes(model),
            position_bytes=position_bytes(model.config, kv),
            kv_cache_bytes=self._blocks * BLOCK_SIZE * position_bytes(model.config, kv),
            multiply_adds=multiply_adds(model.config),
        )

    @property
    def model(self) -> Decoder:
        assert self._runner is not None
        return self._runner.model

    def timed(self, test: Test, threads: int) -> Sample:
        assert self._runner is not None
        use_threads(self._backend, threads)
        sample = Run(self._runner, self._blocks, self._chunk, self._known).timed(test)
        self._known = max(self._known, test.positions)
        return sample

    def peak_rss(self) -> int | None:
        return self._peak()

    def close(self) -> None:
        self._runner = None
        gc.collect()  # models and plans refer to each other


def resident_bytes(model: Decoder) -> int:
    """Bytes that the weights occupy, a tied table counted once."""
    return screen_bytes(model) + sum(stored_bytes(w) for w in {id(w): w for w in model.weights.values()}.values())


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    """What llama-bench says of a model file."""
    infos = checkpoint.tensors().values()
    return {
        "model_filename": str(checkpoint.path),
        "model_type": model_type(checkpoint),
        "model_size": sum(info.nbytes for info in infos),
        "model_n_params": parameters(checkpoint),
    }


def parameters(checkpoint: Checkpoint) -> int:
    return sum(prod(info.shape) for info in checkpoint.tensors().values())


def model_type(checkpoint: Checkpoint) -> str:
    """ "bitnet-b1.58 2.41B I2_S": architecture, size, and the type that holds most of the weights."""
    weights: dict[str, int] = {}
    for info in checkpoint.tensors().values():
        weights[info.dtype] = weights.get(info.dtype, 0) + prod(info.shape)
    return f"{checkpoint.architecture} {short(parameters(checkpoint))} {max(weights, key=weights.__getitem__)}"


def short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
