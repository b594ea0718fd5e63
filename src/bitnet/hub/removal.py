"""Deleting models: whole repositories by huggingface_hub, single files here, which it does not know how to delete."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bitnet.hub import cache
from bitnet.hub.names import Name


@dataclass(frozen=True, slots=True)
class Removal:
    """nbytes: what the disk gets back."""

    nbytes: int
    execute: Callable[[], None]


def plan(name: Name) -> Removal | None:
    """What deleting the model would do; None where it is not there."""
    home = cache.repository(name.repo)
    if not name.quant:
        return whole(home)
    path = cache.find(name)
    if path is None:
        return None
    others = [held for held in cache.held(name.repo) if held.path != path]
    return single(home, path) if others else whole(home)


def whole(home: Path) -> Removal | None:
    """A repository with all its revisions, and what an unfinished download left."""
    if not home.is_dir():
        return None
    from huggingface_hub import scan_cache_dir

    scanned = scan_cache_dir(home.parent)
    commits = [r.commit_hash for repo in scanned.repos if repo.repo_path == home for r in repo.revisions]
    unfinished = list((home / "blobs").glob("*.incomplete"))
    strategy = scanned.delete_revisions(*commits)

    def execute() -> None:
        for path in unfinished:
            path.unlink(missing_ok=True)
        strategy.execute()
        remove_empty(home)

    return Removal(strategy.expected_freed_size + sum(path.stat().st_size for path in unfinished), execute)


def single(home: Path, path: Path) -> Removal:
    """One GGUF file, or the files of a folder: their contents, and every name that they have in any revision."""
    own = [each for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file()]
    if path.is_dir():
        own = [each for each in own if each.suffix != ".gguf"]
    blobs = {each.resolve() for each in own}
    names = [each for each in (home / "snapshots").rglob("*") if each.is_file() and each.resolve() in blobs]

    def execute() -> None:
        for each in (*names, *blobs):
            each.unlink(missing_ok=True)

    return Removal(sum(each.stat().st_size for each in blobs), execute)


def remove_empty(home: Path) -> None:
    """Folders that hold nothing any more, where huggingface_hub had no revision to delete."""
    for where, _, _ in os.walk(home, topdown=False):
        if not os.listdir(where):
            os.rmdir(where)
