"""What does this path hold? The first bytes and the folder's contents decide, not the name."""

from __future__ import annotations

import os
from pathlib import Path

from bitnet.errors import FormatError, ParameterError, UnsupportedError
from bitnet.formats import compiled, gguf, huggingface
from bitnet.formats.checkpoint import Checkpoint
from bitnet.formats.source import SourceFile

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_PICKLE_HEADS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")  # ggml, ggmf, ggjt, ggla as little-endian words


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a GGUF file, a Hugging Face folder, one of its *.safetensors files, a folder with one GGUF file, or a
    compiled model.

    Raises FormatError where the path is not a readable model, UnsupportedError where it is a model of another kind,
    ParameterError for a folder with several GGUF files.
    """
    path = Path(path)
    try:
        folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise FormatError(f"{str(path)!r} is not a path: {error}.") from error
    return _open_folder(path) if folder else _open_file(path)


def _open_file(path: Path) -> Checkpoint:
    source = SourceFile(path)
    head = source.read(0, min(16, source.size)).tobytes()
    source.close()
    if gguf.sniff(head):
        return gguf.open(path)
    if compiled.sniff(head):
        return compiled.open(path)
    if not head:
        raise FormatError(f"{path} is empty.", "Download it again.")
    if path.suffix.lower() in PICKLES or head.startswith(_PICKLE_HEADS):
        raise _pickle(path)
    if path.suffix == ".safetensors":
        if not (path.parent / "config.json").exists():
            raise FormatError(f"{path} has no config.json beside it.", "Download the whole folder.")
        return huggingface.open(path.parent, path.name)
    if head[:4] in _OLD_GGML:
        raise UnsupportedError(f"{path} is a GGML file from before GGUF.", "Convert the model again.")
    raise FormatError(
        f"{path} begins with {head[:4]!r}; a GGUF file begins with b'GGUF'.",
        "A model is a .gguf file or a folder with config.json and *.safetensors.",
    )


def _open_folder(path: Path) -> Checkpoint:
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise FormatError(f"{path} cannot be listed: {error.strerror}.") from error
    weights = [name for name in names if name.endswith(".safetensors")]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if "config.json" in names and (weights or huggingface.INDEX in names):
        return huggingface.open(path)
    if len(ggufs) == 1:
        return gguf.open(path / ggufs[0])
    if ggufs:
        raise ParameterError(f"{path} holds {len(ggufs)} GGUF files.", f"Name one of them: {', '.join(ggufs[:8])}.")
    if any(name.endswith(PICKLES) for name in names):
        raise _pickle(path)
    missing = "config.json" if weights else "*.safetensors" if "config.json" in names else "a model"
    raise FormatError(
        f"{path} lacks {missing}.", "A model is a .gguf file or a folder with config.json and *.safetensors."
    )


def _pickle(path: Path) -> UnsupportedError:
    return UnsupportedError(
        f"{path} holds pickled weights; unpickling a file runs whatever code it contains, so bitnet never does.",
        "Convert it to safetensors with the program that made it.",
    )
