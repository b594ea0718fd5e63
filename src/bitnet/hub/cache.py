"""The Hugging Face cache on this machine, as every tool that uses huggingface_hub keeps it.

    models--ORG--NAME/blobs/ETAG                   the contents, under their hash
    models--ORG--NAME/refs/main                    the commit that `main` was when it was last looked at
    models--ORG--NAME/snapshots/COMMIT/FILE        a link to the contents

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bitnet.errors import NotFoundError, UnsupportedError
from bitnet.hub.choice import CONFIG, INDEX, File, choose, folder_files, is_model, label
from bitnet.hub.known import FOLDER
from bitnet.hub.names import Name

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def folder() -> Path:
    """$HF_HUB_CACHE, or hub/ in $HF_HOME, or where huggingface_hub has it without them."""
    environment = os.environ
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environment.get(name):
            return Path(environment[name]).expanduser()
    caches = Path(environment.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(environment.get("HF_HOME") or caches / "huggingface").expanduser() / "hub"


def repository(repo: str) -> Path:
    return folder() / f"models--{repo.replace('/', '--')}"


def snapshot(repo: str) -> Path | None:
    """The files of `main` as it was last seen, or else those that came last; None where there are none."""
    snapshots = repository(repo) / "snapshots"
    try:
        main = snapshots / (repository(repo) / "refs" / "main").read_text().strip()
        if main.parent == snapshots and main.is_dir():
            return main
    except (OSError, ValueError):
        pass
    try:
        return max((each for each in snapshots.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)
    except (OSError, ValueError):
        return None


def files(root: Path) -> list[File]:
    """What a snapshot holds; links to contents that are gone are left out."""
    paths = (Path(where, name) for where, _, names in os.walk(root) for name in names)
    return sorted(
        (File(path.relative_to(root).as_posix(), path.stat().st_size) for path in paths if path.is_file()),
        key=lambda file: file.name,
    )


def find(name: Name) -> Path | None:
    """The GGUF file or the folder of a model, where all of it is in the cache.

    ParameterError where several of its files are and the name fits all.
    """
    root = snapshot(name.repo)
    if root is None:
        return None
    held = files(root)
    if not complete(root, held):
        held = [file for file in held if file.name != CONFIG]
    try:
        chosen = choose(name.repo, held, name.quant)
    except (NotFoundError, UnsupportedError):
        return None
    return root / chosen[0].name if is_model(chosen[0].name) else root


def complete(root: Path, held: list[File]) -> bool:
    """Whether a folder has all that its index lists, and a tokenizer: others may have fetched a part of it."""
    names = {file.name for file in held}
    if not names.intersection(TOKENIZERS):
        return False
    if INDEX not in names:
        return True
    try:
        return set(json.loads((root / INDEX).read_text())["weight_map"].values()) <= names
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False


@dataclass(frozen=True, slots=True)
class Held:
    """A model in the cache. last_used: seconds since 1970, as far as the file system keeps track of it."""

    name: Name
    path: Path
    nbytes: int
    last_used: float


def held(repo: str = "") -> Iterator[Held]:
    """Every model in the cache, or those of one repository, whether this program can run them or not."""
    roots = [repository(repo)] if repo else sorted(folder().glob("models--*--*"))
    for each in roots:
        name = each.name.removeprefix("models--").replace("--", "/")
        root = snapshot(name)
        if root is None:
            continue
        contents = files(root)
        for file in contents:
            if is_model(file.name):
                yield _held(Name(name, label(file.name)), root / file.name, [root / file.name])
        if complete(root, contents) and (needed := folder_files(contents)):
            several = any(is_model(file.name) for file in contents)
            yield _held(Name(name, FOLDER if several else ""), root, [root / file.name for file in needed])


def _held(name: Name, path: Path, paths: list[Path]) -> Held:
    stats = [each.stat() for each in paths]
    return Held(name, path, sum(each.st_size for each in stats), max(max(s.st_atime, s.st_mtime) for s in stats))
