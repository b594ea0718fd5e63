"""How a model makes one embedding of the states of its tokens, as its files say."""

from __future__ import annotations

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.checkpoint import Checkpoint
from bitnet.formats.huggingface import read_json

POOLINGS = ("last", "mean", "cls")
GGUF_TYPES = ("none", "mean", "cls", "last", "rank")  # of `<architecture>.pooling_type`
# The switches, and the newer single name, in a sentence-transformers folder.
SENTENCE_TRANSFORMERS = {
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
NAMES = {"lasttoken": "last", "mean": "mean", "cls": "cls"}


def read_pooling(checkpoint: Checkpoint) -> str:
    """One of POOLINGS; "last" where the files say nothing, for only the last token has seen all others."""
    name = said_pooling(checkpoint)
    return "last" if name == "none" else name


def said_pooling(checkpoint: Checkpoint) -> str:
    """What the files say; "none" where they do not."""
    if checkpoint.kind == "gguf":
        found = checkpoint.metadata.get(f"{checkpoint.architecture}.pooling_type", 0)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < len(GGUF_TYPES):
            raise FormatError(f"{checkpoint.path}: pooling_type is {found!r:.100}; expected 0 to 4.")
        return GGUF_TYPES[found]
    return read_folder(checkpoint)


def read_folder(checkpoint: Checkpoint) -> str:
    path = checkpoint.path / "1_Pooling" / "config.json"
    if not path.is_file():
        return "none"
    found = read_json(path)
    on = [name for name, value in found.items() if name.startswith("pooling_mode_") and value is True]
    if isinstance(found.get("pooling_mode"), str):
        return NAMES.get(found["pooling_mode"], found["pooling_mode"])
    return SENTENCE_TRANSFORMERS.get(on[0], on[0]) if len(on) == 1 else ", ".join(on) or "none"


def check_pooling(name: str) -> str:
    """`name` if it is one of POOLINGS: asked for by the caller, or found in a file by read_pooling."""
    if name not in POOLINGS:
        raise UnsupportedError(f"Pooling {name!r} is not supported.", f"Known: {', '.join(POOLINGS)}.")
    return name
