"""From a model file to a library."""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

import bitnet
from bitnet import models
from bitnet.backends.base import BLOCK_SIZE
from bitnet.backends.relax import build, write
from bitnet.backends.tvm import TVM, Kernels
from bitnet.backends.tvm_values import Ternary
from bitnet.compile.guard import guard_object
from bitnet.compile.toolchain import link
from bitnet.compile.tuning import (
    MODEL_SECONDS,
    OPERATOR_SECONDS,
    Database,
    Doing,
    Operator,
    tune,
    usual_database,
)
from bitnet.errors import ParameterError, UnsupportedError
from bitnet.formats.atomic import replacing
from bitnet.formats.checkpoint import Checkpoint
from bitnet.formats.compiled import VERSION
from bitnet.formats.digest import sha256
from bitnet.models import Decoder
from bitnet.models.compiled import HELD, SIZES
from bitnet.models.load import Progress, architecture
from bitnet.tensorir import native
from bitnet.tensorir.attention import CACHE_TYPES
from bitnet.tensorir.targets import Target, runs_here, target_of
from bitnet.tokenizer import Tokenizer

USUAL_CONTEXT = 4096
KERNELS = ("auto", "tvm", "native")


@dataclass(frozen=True, slots=True)
class Options:
    """target: a name in tensorir.targets, or "host". ctx_size: positions of a sequence; 0: the model's own maximum.
    kv: the type of cached keys and values. kernels: "tvm", "native" (the core's) or "auto", which takes the faster for
    every product. tune: ways that are tried for each; 0: the usual one. database: where tuning is kept; None: in the
    user's cache. operator_seconds, model_seconds: limits of tuning."""

    target: str = "host"
    ctx_size: int = USUAL_CONTEXT
    kv: str = "f16"
    kernels: str = "auto"
    tune: int = 0
    database: Path | None = None
    operator_seconds: float = OPERATOR_SECONDS
    model_seconds: float = MODEL_SECONDS
    force: bool = False


@dataclass(frozen=True, slots=True)
class Compilation:
    """What was made. nbytes: of the file. seconds: of the whole. products: what computes each, a line for each."""

    path: Path
    target: str
    features: tuple[str, ...]
    context: int
    products: tuple[str, ...]
    nbytes: int
    seconds: float


def compile_model(
    checkpoint: Checkpoint,
    path: Path,
    options: Options = Options(),
    progress: Progress = lambda done, total: None,
    doing: Doing = lambda what: None,
) -> Compilation:
    """Write the library `path`. ParameterError where an option makes no sense or `path` exists."""
    began = time.perf_counter()
    target = target_of(options.target)
    if options.kv not in CACHE_TYPES:
        raise ParameterError(f"kv is {options.kv!r}; a compiled model caches {' or '.join(CACHE_TYPES)}.")
    if options.ctx_size < 0:
        raise ParameterError(f"ctx_size is {options.ctx_size}; expected 0 or more.")
    if path.exists() and not options.force:
        raise ParameterError(f"{path} exists.", "Name another file, or replace it with --force.")
    if hasattr(checkpoint, "manifest"):
        raise UnsupportedError(f"{checkpoint.path} is compiled already.")
    check_kernels(options, target)
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    screened = options.kernels != "tvm" and runs_here(target)  # by the core's kernel
    ops = TVM(target, Kernels(others=screened))
    model = models.load(checkpoint, ops, progress, options.force)
    ops.kernels, products = chosen(model, target, options, doing)
    longest = model.config.max_position_embeddings
    context = min(options.ctx_size or longest, longest)
    doing("writing the module")
    module = write(model, ops, options.kv, -(-context // BLOCK_SIZE) * BLOCK_SIZE)
    doing(f"compiling for {target.name}")
    executable = build(module, target)
    doing("linking")
    manifest = manifest_of(checkpoint, tokenizer, model, target, context, options.kv)
    manifest["model"] |= held(model)
    manifest |= {
        "kernels": options.kernels if ops.kernels.any_native else "tvm",
        "products": products,
        "seconds": round(time.perf_counter() - began, 3),
    }
    save(executable, target, json.dumps(manifest).encode(), path, native.path() if ops.kernels.any_native else None)
    seconds = time.perf_counter() - began
    return Compilation(path, target.name, target.features, context, products, path.stat().st_size, seconds)


def check_kernels(options: Options, target: Target) -> None:
    if options.kernels not in KERNELS:
        raise ParameterError(f"kernels is {options.kernels!r}.", f"Known: {', '.join(KERNELS)}.")
    foreign = target.gpu or target.machine != platform.machine()
    if options.tune and not runs_here(target):
        raise ParameterError(f"Tuning measures on this machine, which {target.name} is not for.", "Leave --tune out.")
    if options.kernels == "native" and foreign:
        raise ParameterError(
            f"The core's kernels are built for this machine, not {target.name}.", "Take --kernels tvm."
        )


def chosen(model: Decoder, target: Target, options: Options, doing: Doing) -> tuple[Kernels, tuple[str, ...]]:
    """What computes the products, and that in words."""
    operators = operators_of(model)
    by_hand = options.kernels == "native" or not runs_here(target)
    if by_hand or (options.kernels == "tvm" and not options.tune):
        kernels = Kernels(native=True, others=True) if options.kernels == "native" else Kernels()
        return kernels, tuple(f"{each}: {'native' if kernels.native else 'tvm'}" for each in operators)
    limits = (options.operator_seconds, options.model_seconds)
    database = Database(options.database or usual_database())
    found = tune(operators, target, database, options.tune, doing, *limits)
    auto = options.kernels == "auto"
    blockings = {
        (each.count, each.shape): record.blocking if auto else record.fastest for each, record in found.items()
    }
    kernels = Kernels(others=auto, blockings={key: way for key, way in blockings.items() if auto or way is not None})
    return kernels, tuple(f"{each}: {record.said(auto)}" for each, record in found.items())


def operators_of(model: Decoder) -> list[Operator]:
    shapes = dict.fromkeys(w.packing for w in model.weights.values() if isinstance(w, Ternary))
    return [Operator(shape, count) for shape in shapes for count in (1, None)]


def save(executable: Any, target: Target, manifest: bytes, path: Path, beside: Path | None) -> None:
    """Link beside `path`, then rename: nothing is ever found under the name but the whole. beside: a library that it
    needs, which is copied into the same folder."""
    options = [str(beside), "-Wl,-rpath,$ORIGIN"] if beside else []
    if beside and not same_file(beside, path.parent / beside.name):
        with replacing(path.parent / beside.name) as copy:
            copy.write(beside.read_bytes())
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        guard = guard_object(target, manifest, Path(folder))
        made = Path(folder) / "model.so"

        def create(output: str, objects: list[str], **_: Any) -> None:
            link(target.machine, [*objects, guard], output, options)

        executable.export_library(str(made), fcompile=create, workspace_dir=folder)
        os.replace(made, path)


def same_file(a: Path, b: Path) -> bool:
    return b.exists() and a.read_bytes() == b.read_bytes()


def manifest_of(
    checkpoint: Checkpoint, tokenizer: Tokenizer, model: Decoder, target: Target, context: int, kv: str
) -> dict[str, Any]:
    sizes = {name: getattr(model.config, name) for name in SIZES} | {"max_position_embeddings": context, "kv": kv}
    infos = checkpoint.tensors()
    return {
        "version": VERSION,
        "bitnet": bitnet.__version__,
        "architecture": architecture(checkpoint),
        "model": sizes,
        "target": {
            "name": target.name,
            "machine": target.machine,
            "features": list(target.features),
            "schedule": target.schedule,
            "tvm": tvm.__version__,
            "tvm_ffi": tvm_ffi.__version__,
        },
        "source": {"name": checkpoint.path.name, "sha256": digest(checkpoint.path)},
        "tensors": {name: (info.shape, info.dtype, info.nbytes) for name, info in infos.items()},
        "metadata": described(checkpoint, tokenizer, model),
    }


def held(model: Decoder) -> dict[str, int]:
    """The bytes that models.compiled.HELD names."""
    others = {id(w): w for name, w in model.weights.items() if name not in ("embed_tokens", "lm_head")}
    head = model.weights["lm_head"]
    found = (head.nbytes, getattr(head, "screen_nbytes", 0), sum(getattr(w, "nbytes", 0) for w in others.values()))
    return dict(zip(HELD, found, strict=True))


def described(checkpoint: Checkpoint, tokenizer: Tokenizer, model: Decoder) -> dict[str, Any]:
    """The metadata of a GGUF file, in types of JSON; of a folder as much as makes its tokenizer."""
    if checkpoint.kind == "gguf":
        return {key: plain(value) for key, value in checkpoint.metadata.items()}
    found: Mapping[str, Any] = tokenizer.to_gguf(model.config.vocab_size)
    return {"general.architecture": architecture(checkpoint)} | {key: plain(value) for key, value in found.items()}


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's weights one after the other."""
    return sha256(*([path] if path.is_file() else sorted(path.glob("*.safetensors")) if path.is_dir() else []))
