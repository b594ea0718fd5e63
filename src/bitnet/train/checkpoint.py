"""The state of a training run on disk: everything that the next step depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bitnet.errors import FormatError, ModelError
from bitnet.formats.atomic import replacing

PATTERN = "checkpoint-*.pt"


def save(out: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write beside the older checkpoints, of which the last `keep` stay: a kill at any moment leaves a whole one."""
    path = out / f"checkpoint-{step:08}.pt"
    with replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # PyTorch's own, raised while that of a full disk passed through it
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    for old in found(out)[: -max(1, keep)]:
        old.unlink(missing_ok=True)
    return path


def found(out: Path) -> list[Path]:
    """The checkpoints of a run, the newest last."""
    return sorted(out.glob(PATTERN))


def load(path: Path) -> dict[str, Any]:
    """What `save` wrote. Reads tensors and plain values only, never code."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FormatError(
            f"{path} is no checkpoint of a training run: {error}", "Delete it to use the one before."
        ) from error
    return state


def latest(out: Path) -> dict[str, Any]:
    paths = found(out)
    if not paths:
        raise ModelError(f"{out} holds no checkpoint-*.pt: nothing has been trained there yet.")
    return load(paths[-1])
