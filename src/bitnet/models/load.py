"""From a checkpoint to a model that runs: architecture, configuration, tensors checked and handed to the backend."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bitnet.backends.base import Ops, Weight
from bitnet.errors import FormatError, ShapeError, UnsupportedError
from bitnet.formats.checkpoint import Checkpoint, TensorInfo
from bitnet.formats.compiled import CompiledFile
from bitnet.formats.floats import PLAIN
from bitnet.formats.gguf_types import TERNARY
from bitnet.models.compiled import load_compiled
from bitnet.models.decoder import Config, Decoder, Shapes
from bitnet.models.hyperparameters import KEPT, read_config
from bitnet.models.memory import check_memory, fits, resident_bytes, room_beside, screen_bytes
from bitnet.models.names import IGNORED, spellings
from bitnet.models.rotation import Rotation, read_rotations
from bitnet.quant.rules import exact_ternary, ternarize
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor, rows_of

# `general.architecture` or `model_type` -> the file in this folder that defines it.
ARCHITECTURES = {
    "bitnet": "bitnet",
    "bitnet-b1.58": "bitnet",
    "bitnet-25": "bitnet",
    "llama": "llama",
    "qwen3": "qwen3",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
}
TERNARY_TYPES = ("packed", *TERNARY)
HEADS = ("auto", "full", "screen")  # when to make a screen of the output head
LEAST_SCREENED = 1 << 20  # bytes of a head below which "auto" makes none
Progress = Callable[[int, int], None]  # (tensors done, tensors in all)


def architecture(checkpoint: Checkpoint) -> str:
    """The checkpoint's architecture; 1bitLLM published BitNet under model_type "llama"."""
    classes = strings(checkpoint, checkpoint.metadata, "architectures")
    return "bitnet" if checkpoint.kind == "hf" and "BitnetForCausalLM" in classes else checkpoint.architecture


def strings(checkpoint: Checkpoint, metadata: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings in the metadata, empty where there is none."""
    found = metadata.get(key) or []
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise FormatError(f"{checkpoint.path}: {key} is {found!r:.100}; expected a list of strings.")
    return found


def open_model(checkpoint: Checkpoint) -> tuple[Any, Config, Shapes]:
    """The architecture's module, the configuration and the tensors it expects; reads no tensor data."""
    name = architecture(checkpoint)
    if name not in ARCHITECTURES:
        raise UnsupportedError(
            f"{checkpoint.path}: architecture {name!r} is not supported.",
            f"Supported: {', '.join(ARCHITECTURES)}.",
        )
    module = import_module(f"bitnet.models.{ARCHITECTURES[name]}")
    config = read_config(checkpoint)
    return module, config, module.shapes(config)


def load(
    checkpoint: Checkpoint,
    ops: Ops,
    progress: Progress = lambda done, total: None,
    force: bool = False,
    head: str = "auto",
) -> Decoder:
    """Build the model of `checkpoint` on the backend `ops`, one tensor in memory at a time.

    head: one of HEADS. ResourceError, before anything is read, when the weights would not fit into memory; `force`
    leaves that check out.
    """
    if isinstance(checkpoint, CompiledFile):
        return load_compiled(checkpoint)
    module, config, shapes = open_model(checkpoint)
    found = resolve(checkpoint, shapes)
    ternary, rotations = ternary_names(checkpoint, found), read_rotations(checkpoint, found)
    rounds = rounds_floats(checkpoint, found)
    sanitize = getattr(module, "sanitize", None)
    infos = checkpoint.tensors()
    needed = sum(resident_bytes(infos[spelled], False) for name, spelled in found.items() if name not in ternary)
    bits = ops.settle(sum(prod(infos[found[name]].shape) for name in ternary), room_beside(needed))
    needed += sum(resident_bytes(infos[found[name]], True, bits) for name in ternary)
    head_name = "lm_head" if "lm_head" in found else "embed_tokens"
    screened = ops.screens and head_name not in ternary and wants_screen(infos[found[head_name]], head, needed)
    if not force:
        check_memory(checkpoint.path, needed + screened * screen_bytes(infos[found[head_name]]), ops.free_bytes())
    weights: dict[str, Weight] = {}
    for done, (name, spelled) in enumerate(found.items()):
        progress(done, len(found))
        weight = None if sanitize else taken_from_file(checkpoint, ops, spelled, name in ternary)
        if weight is None:
            tensor = read_weight(checkpoint, spelled, name in ternary, rounds)
            weight = ops.put(sanitize(name, tensor, checkpoint.kind) if sanitize else tensor)
        weights[name] = weight
    progress(len(found), len(found))
    weights.setdefault("lm_head", weights["embed_tokens"])
    if screened:
        ops.add_screen(weights["lm_head"])
    for name, rotation in rotations.items():
        weights[f"{name}.rotation"] = Rotation(ops.put(DenseTensor(rotation.signs)), rotation.block)
    model: Decoder = module.Model(config, weights, ops)
    return model


def wants_screen(info: TensorInfo, head: str, needed: int) -> bool:
    """Whether a dense output head gets a screen: a byte a weight, beside `needed` bytes of weights.

    Where nobody has asked for it, it must be worth reading (a Q8_0 row is hardly longer than its screen) and fit.
    """
    if head != "auto":
        return head == "screen"
    pays = info.dtype != "Q8_0" and resident_bytes(info, ternary=False) >= LEAST_SCREENED
    return pays and fits(needed + screen_bytes(info))


def resolve(checkpoint: Checkpoint, shapes: Shapes) -> dict[str, str]:
    """Our name -> the file's name, for every expected tensor; ShapeError when the file and the configuration differ."""
    infos, kept = checkpoint.tensors(), kept_names(checkpoint)
    found: dict[str, str] = {}
    for name, shape in shapes.items():
        spelled = next((s for s in spellings(name, checkpoint.kind) if s in infos), None)
        if spelled is None and name.endswith("_proj.norm") and is_kept(name.removesuffix(".norm"), kept):
            continue  # a projection that was not converted has no norm of its own
        if spelled is None:
            raise ShapeError(f"{checkpoint.path}: the tensor {spellings(name, checkpoint.kind)[0]} is missing.")
        if infos[spelled].shape != shape:
            raise ShapeError(f"{checkpoint.path}: {spelled} is {infos[spelled].shape}; the configuration says {shape}.")
        found[name] = spelled
    # Some files repeat the tied embedding under the head's name.
    known = {*found.values(), *spellings("lm_head", checkpoint.kind)}
    extra = [name for name in infos if name not in known and not IGNORED.fullmatch(name)]
    if extra:
        raise FormatError(
            f"{checkpoint.path}: {len(extra)} tensors have no place in this model: {', '.join(extra[:4])}."
        )
    return found


def ternary_names(checkpoint: Checkpoint, found: Mapping[str, str]) -> set[str]:
    """Those of our names whose weight is ternary: stored so, or floats that are masters of a ternary one, or ternary
    numbers already."""
    infos, kept, rounded = checkpoint.tensors(), kept_names(checkpoint), rounds_floats(checkpoint, found)
    return {
        name
        for name, spelled in found.items()
        if (infos[spelled].dtype in TERNARY_TYPES and len(infos[spelled].shape) == 2)
        or (name.endswith("_proj") and not is_kept(name, kept) and (rounded or looks_ternary(checkpoint, spelled)))
    }


def rounds_floats(checkpoint: Checkpoint, found: Iterable[str]) -> bool:
    """Whether the float projections of this model are masters, which it was trained to round."""
    quantization = checkpoint.metadata.get("quantization_config") or {}
    return (
        architecture(checkpoint).startswith("bitnet")
        or quantization.get("quant_method") == "bitnet"
        or any(name.endswith("_proj.norm") for name in found)  # which only BitLinear has
    )


def looks_ternary(checkpoint: Checkpoint, spelled: str) -> bool:
    """Whether the first, middle and last row of a float matrix are a scale times -1, 0 and 1, as TriLM and Falcon-E are
    also published. No trained float row is."""
    info = checkpoint.tensors()[spelled]
    if info.dtype not in PLAIN:
        return False
    n, step = info.shape[0], checkpoint.row_step(spelled)
    for row in (0, n // 2, n - 1):
        first = row // step * step
        rows = checkpoint.read_rows(spelled, slice(first, min(first + step, n)))
        if exact_ternary(rows_of(rows, slice(row - first, row - first + 1)).dequantize()) is None:
            return False
    return True


def kept_names(checkpoint: Checkpoint) -> list[str]:
    """What the file names as left in float, as parts of modules' names."""
    if checkpoint.kind == "gguf":
        return strings(checkpoint, checkpoint.metadata, KEPT)
    return strings(checkpoint, checkpoint.metadata.get("quantization_config") or {}, "modules_to_not_convert")


def is_kept(name: str, kept: list[str]) -> bool:
    return any(f"model.{name}.".startswith(f"{each}.") or f"model.{name}".endswith(each) for each in kept)


def taken_from_file(checkpoint: Checkpoint, ops: Ops, spelled: str, ternary: bool) -> Weight | None:
    """One tensor, packed by the backend straight from the file; None where it has to be decoded first."""
    stored = None if len(checkpoint.tensors()[spelled].shape) == 1 else checkpoint.stored(spelled)
    if stored is None or (stored.scale is not None) != ternary or scale_name(spelled) in checkpoint.tensors():
        return None
    return ops.put_stored(stored)


def read_weight(checkpoint: Checkpoint, spelled: str, ternary: bool, rounds: bool) -> Tensor:
    """One tensor as the model uses it, with the separate `.scale` that llama.cpp allows beside a bitnet weight."""
    tensor = checkpoint.read(spelled)
    if len(tensor.shape) == 1:  # a norm, which everything passes through
        finite(tensor.dequantize(), spelled, checkpoint)
    return scaled(as_ternary(tensor, spelled, checkpoint, rounds) if ternary else tensor, spelled, checkpoint)


def as_ternary(tensor: Tensor, spelled: str, checkpoint: Checkpoint, rounds: bool) -> TernaryTensor:
    """A projection as ternary: as stored, or exactly where its floats are ternary already, else rounded by absmean if
    the model's floats are masters."""
    if isinstance(tensor, TernaryTensor):
        return tensor
    weight = finite(tensor.dequantize(), spelled, checkpoint)
    exact = exact_ternary(weight)
    if exact is None and not rounds:
        raise partly_ternary(checkpoint, spelled)
    return exact or ternarize(weight)


def finite(values: npt.NDArray[Any], spelled: str, checkpoint: Checkpoint) -> npt.NDArray[Any]:
    if not np.isfinite(values).all():
        raise FormatError(f"{checkpoint.path}: {spelled} holds numbers that are not finite.")
    return values


def partly_ternary(checkpoint: Checkpoint, spelled: str) -> FormatError:
    return FormatError(
        f"{checkpoint.path}: some rows of {spelled} are a scale times -1, 0 and 1, and others are not.",
        "The file is damaged, or its scales are shared in a way that is not known here.",
    )


def scale_name(spelled: str) -> str:
    return spelled.removesuffix(".weight") + ".scale"


def scaled(tensor: Tensor, spelled: str, checkpoint: Checkpoint) -> Tensor:
    """`tensor` times the scale stored beside it, where there is one."""
    beside = scale_name(spelled)
    if beside not in checkpoint.tensors():
        return tensor
    scale = checkpoint.read(beside).dequantize()
    if scale.size != 1 or not np.isfinite(scale).all():
        raise FormatError(f"{checkpoint.path}: {beside} is {scale.reshape(-1)[:4]}; one finite number was expected.")
    factor = scale.reshape(())
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(tensor, TernaryTensor):
            return TernaryTensor(tensor.codes, finite(tensor.scales * factor, spelled, checkpoint))
        return DenseTensor(finite(tensor.dequantize() * factor, spelled, checkpoint))
