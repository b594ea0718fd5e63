"""The state of a training run on disk: everything that the next step depends on."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from bitnet.models.decoder import Config
from bitnet.train.parameters import Parameters


def save(path: Path, config: Config, parameters: Parameters, **state: Any) -> None:
    """Write beside the old checkpoint, then take its place: a kill at any moment leaves a whole file."""
    part = path.with_suffix(".part")
    shape = {each.name: getattr(config, each.name) for each in fields(config) if each.init}
    torch.save({"config": shape, "masters": parameters.masters, **state}, part)
    os.replace(part, path)


def load_state(path: Path) -> dict[str, Any]:
    """What `save` wrote. Reads tensors and plain values only, never code."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def load(path: Path) -> tuple[Config, Parameters]:
    """Configuration and masters."""
    state = load_state(path)
    config = Config(**state["config"])
    parameters = Parameters(config, seed=0)
    parameters.masters = state["masters"]
    return config, parameters
