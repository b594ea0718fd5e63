"""The library of a compiled model as a backend: it makes caches and runs steps, where this machine can."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray

import bitnet._core as _core
from bitnet.backends.base import Model, Step
from bitnet.backends.relax import NEW_CACHE, Compiled
from bitnet.backends.tvm import TVM, KVCache
from bitnet.errors import FormatError, ParameterError, UnsupportedError


class Library(TVM):
    """manifest: its target and its sizes. UnsupportedError, before anything of it runs, where this is no machine for
    it."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path, self.sizes = path, manifest["model"]
        self.name = f"compiled ({manifest.get('kernels', 'tvm')})"
        check_machine(path, manifest["target"], platform.machine(), _core.cpu_features())
        check_version(path, manifest["target"])
        try:
            self._machine = tvm.relax.VirtualMachine(tvm.runtime.load_module(str(path.resolve())), tvm.cpu())
        except (OSError, RuntimeError, ValueError) as error:
            raise FormatError(f"{path} cannot be loaded: {str(error).strip()[-300:]}", "Compile it again.") from None

    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> KVCache:
        if dtype != self.sizes["kv"]:
            raise ParameterError(f"{self.path} was compiled for --kv {self.sizes['kv']}, not {dtype}.")
        return KVCache(self._machine[NEW_CACHE](tvm.runtime.ShapeTuple([blocks])), dtype)

    def compile(self, model: Model, cache: KVCache) -> Callable[[Step], NDArray[np.float32]]:
        return Compiled(self._machine, cache)


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
