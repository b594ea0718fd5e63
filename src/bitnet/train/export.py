"""From trained masters to model files: what the last step computed with, as the engine reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnet.convert import write_checkpoint
from bitnet.convert.folder import write_folder
from bitnet.convert.losses import Losses
from bitnet.errors import FormatError, ParameterError
from bitnet.models.load import open_model
from bitnet.models.names import spellings
from bitnet.quant.tensor import DenseTensor
from bitnet.quant.tensor import Tensor as Stored
from bitnet.quant.threshold import Group
from bitnet.tokenizer import Tokenizer
from bitnet.train import checkpoint
from bitnet.train.described import Described
from bitnet.train.model import TernaryLM
from bitnet.train.quantizers import TERNARY, Recipe, deployed, recipe_of

TOKENIZER = "tokenizer"  # folder of a run that holds the tokenizer's files
TYPES: Mapping[Group, str] = {"tensor": "i2_s", "row": "iq2_bn", 256: "tq2_0", 128: "pq2_0", 64: "q2_0"}


def type_of(group: Group) -> str | None:
    """The GGUF type with the longest blocks that such groups are made of."""
    if isinstance(group, str):
        return TYPES[group]
    return next((kind for block, kind in TYPES.items() if isinstance(block, int) and group % block == 0), None)


def check_exportable(model: TernaryLM) -> None:
    """ParameterError where no file could hold what such a model learns: better before training than after it."""
    group, ternary = model.recipe.rule.group, [n for n in model.projections() if model.recipe.bits(n) == TERNARY]
    if ternary and type_of(group) is None:
        raise ParameterError(
            f"No model file holds scales for groups of {group}.", "Take a multiple of 64, or 'tensor'."
        )
    odd = next((n for n in ternary if group == "row" and model.shapes[n][1] % 64), None)
    if odd:
        raise ParameterError(
            f"{odd} has rows of {model.shapes[odd][1]}; files with a scale for each row take multiples of 64.",
            "Take recipe.group tensor, or other sizes.",
        )


def checkpoint_of(
    description: Mapping[str, Any], recipe: Recipe, parameters: Mapping[str, Tensor], path: Path
) -> Described:
    """The deployed model. parameters: by our names, with ".weight" or ".scale"."""
    architecture, _, shapes = open_model(Described(description))
    weights, kept = {}, []
    for name in shapes:
        master, scales = parameters[f"{name}.weight"], parameters.get(f"{name}.scale")
        if name.endswith("_proj"):
            weights[name] = deployed(master, recipe.bits(name), recipe, scales)
            kept += [f"model.{name}"] if recipe.bits(name) != TERNARY else []
        else:
            weights[name] = DenseTensor(master.detach().float().cpu().numpy())
    gemma = architecture.__name__.endswith("gemma3")
    spelled = {spellings(name, "hf")[0]: as_stored(name, weight, gemma) for name, weight in weights.items()}
    return Described(with_kept(description, kept), spelled, path)


def as_stored(name: str, weight: Stored, gemma: bool) -> Stored:
    """Hugging Face files of Gemma hold the norms less one."""
    if gemma and len(weight.shape) == 1 and not name.endswith("_proj.norm"):
        return DenseTensor(weight.dequantize() - np.float32(1))
    return weight


def with_kept(description: Mapping[str, Any], kept: list[str]) -> dict[str, Any]:
    """The description, naming the projections that are not ternary: loading would round them in a BitNet."""
    quantization = dict(description.get("quantization_config") or {})
    if kept:
        quantization |= {"quant_method": "bitnet", "modules_to_not_convert": ["lm_head", *kept]}
    return {**description, **({"quantization_config": quantization} if quantization else {})}


def trained(run: Path, dtype: torch.dtype = torch.float32) -> TernaryLM:
    """The model of a run's last checkpoint, to be trained on or looked at. dtype: of activations."""
    state = checkpoint.latest(run)
    about = state["about"]
    if not about:
        raise FormatError(f"{run}: its checkpoint holds a model that was not built here.")
    model = TernaryLM(about["description"], recipe_of(about["recipe"]), dtype=dtype)
    model.load_state_dict(state["model"])
    return model


def deployed_checkpoint(model: TernaryLM, path: Path) -> Described:
    return checkpoint_of(model.description, model.recipe, model.state_dict(), path)


def export(
    run: Path,
    *,
    gguf: Path | None = None,
    folder: Path | None = None,
    weights: str | None = None,
    embeddings: str | None = "f16",
) -> list[str]:
    """Write a run's model as a GGUF file, a Hugging Face folder with packed weights, or both.

    weights: the type of ternary tensors in the GGUF file; None takes one that holds the scales exactly, or as float16
    where they are shared by groups. Returns a sentence for everything that is not exactly kept.
    """
    model, tokenizer = trained(run), Tokenizer.from_folder(run / TOKENIZER)
    notes: list[str] = []
    if model.recipe.activations != 8:
        notes.append(f"Trained with activations of {model.recipe.activations} bits; the engine gives them 8.")
    for path, write in ((gguf, write_checkpoint), (folder, write_folder)):
        if path is None:
            continue
        options: dict[str, Any] = {"embeddings": embeddings, "tokenizer": tokenizer}
        if path is gguf:
            options["weights"] = weights or type_of(model.recipe.rule.group) or "tq2_0"
        losses: Losses = write(deployed_checkpoint(model, path), path, **options)  # type: ignore[operator]
        notes += [f"{path}: {note}" for note in losses.notes()]
    return notes
