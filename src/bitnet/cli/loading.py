"""Opening the model that the options name, with a progress line when it takes long."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import bitnet.formats
from bitnet import hub
from bitnet.api import BitNet, builtin_model
from bitnet.cli.text import note
from bitnet.engine import EngineConfig
from bitnet.formats import Checkpoint

PATIENCE = 0.5  # seconds before a progress line appears


def open_model(model: Path | None, *, ctx_size: int, max_sequences: int = 1, **options: Any) -> BitNet:
    """options: further arguments of BitNet."""
    progress = Progress("loading")
    try:
        bitnet = BitNet(model, ctx_size=ctx_size, max_sequences=max_sequences, progress=progress, **options)
    finally:
        progress.clear()
    longest = bitnet.llm.model.config.max_position_embeddings
    if longest < ctx_size != EngineConfig().ctx_size:
        note(f"[The context is {longest} tokens: this model takes no more.]")
    if bitnet.profile.note:
        note(bitnet.profile.note)
    return bitnet


def opened(model: Path | None, synthetic: str = "") -> Checkpoint:
    """The model of a path or a name, or a random one of a real shape; the built-in model where neither is named."""
    from bitnet.models.synthetic import SyntheticCheckpoint

    if synthetic:
        return SyntheticCheckpoint(synthetic)
    return bitnet.formats.open(builtin_model() if model is None else hub.locate(model))


class StatusLine:
    """A line on a terminal that tells what is going on, and vanishes."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\033[K{text}")
            sys.stderr.flush()
            self._shown = True

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
            self._shown = False


class Progress(StatusLine):
    """`loading  45 %  3 s left`, once it has taken a moment; called with what is done and what there is in all."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        self._verb, self._started = verb, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self._started
        if elapsed > PATIENCE and 0 < done < total:
            self.show(f"{self._verb}  {100 * done // total} %  {elapsed * (total - done) / done:.0f} s left")
        elif done == total:
            self.clear()
