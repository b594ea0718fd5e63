"""Models whose steps TVM compiled: in this process, or in a library, which must be for this machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import tvm
from numpy.typing import NDArray

import bitnet._core as _core
from bitnet.backends.base import BLOCK_SIZE, Model, Step
from bitnet.backends.relax import NEW_CACHE, WEIGHTS, build_resident, into, write_resident
from bitnet.backends.tvm import TVM
from bitnet.backends.tvm_values import KVCache, tensor
from bitnet.backends.writer import DECODE, STEP, written
from bitnet.errors import FormatError, ParameterError, UnsupportedError
from bitnet.tensorir import native
from bitnet.tensorir.sequence import ALIGNMENT, aligned

ZERO = tensor(np.zeros(1, np.int32))
PIECE = 1 << 20  # bytes


class Compiled:
    """The steps of a module on one cache, for one thread at a time.

    weights: what they take after the cache. kept: what they read besides, for as long as this lives.
    """

    def __init__(
        self, module: Any, vocabulary: int, cache: KVCache, weights: tuple[Any, ...] = (), kept: Any = None
    ) -> None:
        self._decode, self._step = (module.get_function(into(name), True) for name in (DECODE, STEP))
        self._vocabulary, self._cache, self._weights, self._kept = vocabulary, cache, weights, kept
        self._room = aligned(0).view(np.float32)

    def __call__(self, step: Step) -> NDArray[np.float32]:
        """Logits (S, vocab); ParameterError where the step does not fit, before the cache is touched."""
        use_threads(_core.threads())
        tokens, count = len(step.ids), len(step.want)
        want, tops = (step.want, step.tops) if count else (ZERO, ZERO)  # one is computed in any case
        sequences = ZERO if tokens == 1 else step.sequences
        logits = self._logits(count or 1)
        run = self._decode if tokens == len(logits) == 1 else self._step
        inputs = (step.ids, step.positions, sequences, want, tops, step.block_tables, self._cache.pages)
        try:
            run(*inputs, *self._weights, logits)
        except ValueError as error:
            raise ParameterError(str(error)) from None
        return logits if count else logits[:0]

    def _logits(self, rows: int) -> NDArray[np.float32]:
        """Memory for so many: the next of a piece, which lives as long as anyone reads of it. That takes a tenth of the
        time that an allocation of TVM takes."""
        count = rows * self._vocabulary
        if count > len(self._room):
            self._room = aligned(max(4 * count, PIECE)).view(np.float32)
        found, self._room = self._room[:count], self._room[-(-4 * count // ALIGNMENT) * ALIGNMENT // 4 :]
        return found.reshape(rows, self._vocabulary)


def resident(model: Model, ops: TVM, cache: KVCache) -> Compiled:
    """The steps of a Decoder, which read its weights where they lie."""
    decoder, positions = cast(Any, model), cache.blocks * BLOCK_SIZE
    steps = written(decoder, ops, cache.kv, positions)
    module = build_resident(write_resident(decoder, ops, positions, steps), ops.target)
    return Compiled(module, decoder.config.vocab_size, cache, kept=steps)


_threads = 0  # that TVM was told to use


def use_threads(count: int) -> None:
    """Let TVM use as many as the core does."""
    global _threads
    if count != _threads:
        os.environ["TVM_NUM_THREADS"] = str(count)  # or else TVM asks the system before every loop
        tvm.get_global_func("runtime.config_threadpool")(1, count)
        native.set_threads(count)
        _threads = count


class Library(TVM):
    """manifest: its target and its sizes. UnsupportedError, before anything of it runs, where this is no machine for
    it."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path, self.sizes = path, manifest["model"]
        self.name = f"compiled ({manifest.get('kernels', 'tvm')})"
        check_machine(path, manifest["target"], platform.machine(), _core.cpu_features())
        check_version(path, manifest["target"])
        try:
            self._module = tvm.runtime.load_module(str(path.resolve()))
            self._machine = tvm.relax.VirtualMachine(self._module, tvm.cpu())
            self._weights = self._machine[WEIGHTS]()
        except (AttributeError, OSError, RuntimeError, ValueError) as error:
            raise FormatError(f"{path} cannot be loaded: {str(error).strip()[-300:]}", "Compile it again.") from None

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> KVCache:
        if dtype != self.sizes["kv"]:
            raise ParameterError(f"{self.path} was compiled for --kv {self.sizes['kv']}, not {dtype}.")
        return KVCache(self._machine[NEW_CACHE](tvm.runtime.ShapeTuple([blocks])), dtype)

    def compile(self, model: Model, cache: KVCache) -> Callable[[Step], NDArray[np.float32]]:
        return Compiled(self._module, self.sizes["vocab_size"], cache, (self._weights,))


def check_machine(path: Path, target: Mapping[str, Any], machine: str, features: Mapping[str, bool]) -> None:
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if target.get("machine") != machine:
        raise UnsupportedError(
            f"{path} is compiled for {target.get('machine')}; this is {machine}.", "Compile it with --target host."
        )
    missing = [name for name in target.get("features", []) if not features.get(name, False)]
    if missing:
        raise UnsupportedError(
            f"{path} is compiled for {target.get('name')}; this CPU lacks {', '.join(missing)}.",
            "Compile it with --target host, or run the model file itself.",
        )


def check_version(path: Path, target: Mapping[str, Any]) -> None:
    """What TVM writes is for one version of its runtime."""
    if target.get("tvm") != tvm.__version__:
        raise UnsupportedError(
            f"{path} was compiled with TVM {target.get('tvm')}; {tvm.__version__} is installed.",
            f"pip install 'apache-tvm=={target.get('tvm')}', or compile it again.",
        )
