"""What a model is, from its header alone."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import bitnet.formats
from bitnet.cli.inspection import bits, why_not
from bitnet.errors import BitNetError
from bitnet.formats import Checkpoint

UNREADABLE = {"architecture": None, "weights": None, "parameters": None, "bits_per_weight": None}


def summary(path: Path) -> dict[str, Any]:
    """architecture, the type of most weights, parameters, bits per weight, and whether it runs here or why not."""
    try:
        with bitnet.formats.open(path) as checkpoint:
            return {**described(checkpoint), "runs": why_not(checkpoint)}
    except BitNetError as error:
        return {**UNREADABLE, "runs": f"no: {error.message}"}


def described(checkpoint: Checkpoint) -> dict[str, Any]:
    infos = checkpoint.tensors().values()
    weights: Counter[str] = Counter()
    for info in infos:
        weights[info.dtype] += prod(info.shape)
    parameters = sum(weights.values())
    return {
        "architecture": checkpoint.architecture,
        "weights": max(weights, key=weights.__getitem__, default=None),
        "parameters": parameters,
        "bits_per_weight": bits(sum(info.nbytes for info in infos), parameters),
    }
