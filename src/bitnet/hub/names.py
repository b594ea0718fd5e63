"""What people write to name a model: `org/name`, `org/name:QUANT`, or a short name of the known table."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from bitnet.hub.known import KNOWN

# What huggingface_hub takes (utils/_validators.py), with the organisation always there.
REPO = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?<![.-])", re.ASCII)
PREFIX = re.compile(r"(?:hf|(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co))[:/]/*")
FILES = (".gguf", ".safetensors", ".json", ".bin", ".pt", ".pth", ".pkl", ".ckpt")


@dataclass(frozen=True, slots=True)
class Name:
    """A model on a hub. quant: which of the repository's files, as "I2_S" or by the file's name; "" leaves it open."""

    repo: str
    quant: str = ""

    def __str__(self) -> str:
        return f"{self.repo}:{self.quant}" if self.quant else self.repo


def parse(text: str) -> Name | None:
    """The model that `text` names; None where it can only be a path."""
    for known in KNOWN:
        if text.lower() == known.name:
            return Name(known.repo, known.quant)
    prefix = PREFIX.match(text)
    repo, _, quant = text[prefix.end() if prefix else 0 :].partition(":")
    repo = repo.rstrip("/")
    if not REPO.fullmatch(repo) or (not prefix and looks_local(repo)):
        return None
    return Name(repo, quant)


def looks_local(repo: str) -> bool:
    """Whether "a/b" is more likely a path that is mistyped."""
    return repo.lower().endswith(FILES) or Path(repo.split("/")[0]).is_dir()


def given(model: str | os.PathLike[str]) -> str:
    """A name as it was written, whatever the system's separator is."""
    return model.as_posix() if isinstance(model, Path) else os.fspath(model)
