"""A deeper model that begins as a trained one: its layers, and after each copies of it that say little at first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitnet.errors import ParameterError
from bitnet.formats import open as open_checkpoint
from bitnet.train.described import description_of
from bitnet.train.model import TernaryLM
from bitnet.train.quantizers import ternarize

LAYER = re.compile(r"^(layers\.)(\d+)(\.)")
OUTPUTS = ("o_proj", "down_proj")  # what a layer adds to the stream
QUIET = 0.1  # of a copy's outputs


def deepened(path: Path, layers: int, **options: Any) -> TernaryLM:
    """The model of a file or folder with `layers` layers. Options are TernaryLM's."""
    with open_checkpoint(path) as opened:
        description = description_of(opened)
    shallow = TernaryLM.from_pretrained(path)
    depth = int(description["num_hidden_layers"])
    if layers < depth:
        raise ParameterError(f"{path} has {depth} layers; a deeper model cannot have {layers}.")
    model = TernaryLM({**description, "num_hidden_layers": layers}, **options)
    generator = torch.Generator().manual_seed(0)
    masters = {name: shallow.master(name).detach() for name in shallow.shapes}
    with torch.no_grad():
        for name in model.shapes:
            model.master(name).copy_(beginning(name, masters, depth / layers, model, generator))
    return model


def beginning(
    name: str, masters: Mapping[str, Tensor], ratio: float, model: TernaryLM, generator: torch.Generator
) -> Tensor:
    """What this parameter starts as."""
    found = LAYER.match(name)
    index = int(found[2]) if found else 0
    origin = int(index * ratio)
    master = masters[LAYER.sub(rf"\g<1>{origin}\3", name)]
    if not name.endswith("_proj"):
        return master
    master = spread_out(master, model, generator)
    copy = index > 0 and int((index - 1) * ratio) == origin
    return master * QUIET if copy and name.endswith(OUTPUTS) else master


def spread_out(master: Tensor, model: TernaryLM, generator: torch.Generator) -> Tensor:
    """Masters that round to the same codes and scale, but lie anywhere between the thresholds, as trained ones do.

    Those read from a file lie in the middle, all equally far from another code. The excess over a threshold is drawn
    from an exponential distribution whose mean leaves that of all sizes, which is the scale, as it was.
    """
    codes, scale = ternarize(master, model.recipe.rule)
    if scale.ndim:
        return master
    kept = codes.abs().mean()
    mean = (1 - 0.25 * (1 - kept)) / kept - 0.5
    uniform = torch.rand(master.shape, generator=generator)
    excess = 0.5 - mean * torch.log1p(-torch.rand(master.shape, generator=generator))
    return scale * torch.where(codes == 0, uniform - 0.5, codes * excess)
