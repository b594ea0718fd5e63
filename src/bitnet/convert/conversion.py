"""The whole way from a path to a path: what is asked for, checked, written, and what came of it."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import bitnet.formats
from bitnet.convert.folder import write_folder
from bitnet.convert.gguf import Embeddings, Weights, write_checkpoint
from bitnet.errors import ParameterError
from bitnet.models.load import Progress


@dataclass(frozen=True, slots=True)
class Conversion:
    """types: how many tensors of each type were written. notes: a sentence for everything that is not exactly kept;
    empty where the result is the same model."""

    source: Path
    target: Path
    nbytes: int
    types: dict[str, int]
    notes: tuple[str, ...]
    seconds: float

    @property
    def lossless(self) -> bool:
        return not self.notes


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    weights: Weights | None = None,
    embeddings: Embeddings | None = None,
    head: Embeddings | None = None,
    to: str | None = None,
    force: bool = False,
    progress: Progress = lambda done, total: None,
) -> Conversion:
    """Write the model at `source`, a GGUF file or a Hugging Face folder, as `target`.

    to: "gguf", or "safetensors" for a folder with packed ternary weights as transformers reads them; None goes by
    whether `target` ends in .gguf. weights, embeddings, head: see write_checkpoint; for a folder, weights does not
    apply, and the embeddings are f32, f16 or bf16. force: replace a target that exists.

    Nothing lies under `target` before it is whole. Takes a few hundred megabytes of memory, however large the model.
    Raises ModelError, ParameterError or ResourceError.
    """
    source, target = Path(source), Path(target)
    to = to or ("gguf" if target.suffix == ".gguf" else "safetensors")
    if to not in ("gguf", "safetensors"):
        raise ParameterError(f"The format is {to!r}.", "Known: gguf, safetensors.")
    check_target(source, target, to, force)
    started = time.monotonic()
    with bitnet.formats.open(source) as checkpoint:
        if to == "gguf":
            losses = write_checkpoint(
                checkpoint, target, weights=weights, embeddings=embeddings, head=head, progress=progress
            )
        elif weights is not None:
            raise ParameterError("A folder has one packing of ternary weights; weights does not apply.")
        else:
            losses = write_folder(checkpoint, target, embeddings=embeddings, head=head, progress=progress)
    seconds = time.monotonic() - started
    with bitnet.formats.open(target) as written:
        infos = written.tensors().values()
        types = Counter(info.dtype for info in infos)
        nbytes = target.stat().st_size if target.is_file() else sum(info.nbytes for info in infos)
    return Conversion(source, target, nbytes, dict(types), tuple(losses.notes()), seconds)


def check_target(source: Path, target: Path, to: str, force: bool) -> None:
    if target.exists() and source.exists() and target.resolve() in (source.resolve(), *source.resolve().parents):
        raise ParameterError(f"{target} is, or holds, what is to be converted.", "Name another target.")
    if not target.exists():
        return
    if not force:
        raise ParameterError(f"{target} exists.", "Name another one, or replace it with --force.")
    if to == "gguf" and not target.is_file():
        raise ParameterError(f"{target} is a directory; a GGUF file cannot take its place.")
    if to == "safetensors" and not (
        target.is_dir() and ((target / "config.json").exists() or not any(target.iterdir()))
    ):
        raise ParameterError(f"{target} is no model folder; --force replaces only those.", "Name another folder.")
