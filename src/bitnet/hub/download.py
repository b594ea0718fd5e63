"""Files from the hub into the cache: continued where they broke off, and published only once their hash is right.

Contents grow in blobs/ETAG.incomplete under the lock that huggingface_hub takes for them, and are renamed when all of
them are there and have the hash that the hub announced. Links to them come last, those that make a folder a model
behind all others. So nothing that is half there has a name that anybody opens.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bitnet.errors import DownloadError, OfflineError, ResourceError
from bitnet.hub import cache
from bitnet.hub.choice import File, amount, is_model
from bitnet.hub.remote import Repository, endpoint, refusals

PIECE = 1 << 20


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fetch(repository: Repository, chosen: Sequence[File]) -> Path:
    """The path of the model that `chosen` are, in the cache; downloads what is not there."""
    home = cache.repository(repository.repo)
    missing = [file for file in chosen if not (home / "blobs" / file.etag).exists()]
    if missing:
        announce(repository.repo, home, missing)
    for file in missing:
        fetch_one(repository, home / "blobs" / file.etag, file)
    for file in chosen:
        link(repository, file)
    write_ref(home, repository.commit)
    root = home / "snapshots" / repository.commit
    return root / chosen[0].name if is_model(chosen[0].name) else root


def announce(repo: str, home: Path, missing: Sequence[File]) -> None:
    """Say what comes; ResourceError where the disk has no room for it."""
    there = sum(partial_size(home, file) for file in missing)
    total = sum(file.size for file in missing)
    free = shutil.disk_usage(existing(home)).free
    if total - there > free:
        raise ResourceError(
            f"{repo} takes {amount(total - there)} of disk; {cache.folder()} has {amount(free)} left.",
            "Free some (`bitnet list`, `bitnet rm NAME`), or set HF_HOME to a folder on another disk.",
        )
    kept = f", {amount(there)} of them here from last time" if there else ""
    say(f"Fetching {repo} ({amount(total)}{kept}) into {cache.folder()}")


def fetch_one(repository: Repository, blob: Path, file: File) -> None:
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    lock = cache.folder() / ".locks" / cache.repository(repository.repo).name / f"{file.etag}.lock"
    for each in (lock, blob):
        each.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():  # another process was faster
            return
        partial = incomplete(blob)
        receive(repository, partial, file)
        check(partial, file)
        os.replace(partial, blob)


def receive(repository: Repository, partial: Path, file: File) -> None:
    """Append to `partial` what it lacks. Small files begin anew: a server may compress them on the way."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(repository.repo, file.name, revision=repository.commit, endpoint=endpoint())
    with partial.open("r+b" if partial.exists() else "xb") as to:
        if not file.sha256 or partial.stat().st_size > file.size:
            to.truncate(0)
        done = to.seek(0, os.SEEK_END)
        if done == file.size:
            return
        try:
            with refusals(repository.repo):
                http_get(
                    url,
                    to,
                    resume_size=done,
                    headers=build_hf_headers(),
                    expected_size=file.size,
                    displayed_filename=file.name,
                )
        except OfflineError as error:
            to.flush()
            here = partial.stat().st_size
            raise DownloadError(
                f"{file.name} broke off after {amount(here)} of {amount(file.size)}: {error.__cause__}.",
                "Run the same command again: it goes on from there.",
            ) from error


def check(partial: Path, file: File) -> None:
    """DownloadError, and nothing kept, where the contents are not what the hub announced."""
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {partial.stat().st_size}\0".encode())
    with partial.open("rb") as contents:
        while piece := contents.read(PIECE):
            digest.update(piece)
    if digest.hexdigest() != file.etag:
        partial.unlink()
        raise DownloadError(
            f"{file.name} has the hash {digest.hexdigest()}; {file.etag} was announced. It was thrown away.",
            "Run the same command again; if that helps nothing, something between here and the hub changes files.",
        )


def link(repository: Repository, file: File) -> None:
    """Give the contents their name in the snapshot; huggingface_hub knows how where there are no symbolic links."""
    from huggingface_hub import hf_hub_download

    if (cache.repository(repository.repo) / "snapshots" / repository.commit / file.name).exists():
        return
    with refusals(repository.repo):
        hf_hub_download(
            repository.repo,
            file.name,
            revision=repository.commit,
            cache_dir=cache.folder(),
            endpoint=endpoint(),
        )


def write_ref(home: Path, commit: str) -> None:
    """What `main` is, as huggingface_hub would note it: with it others find the model, and we offline."""
    ref = home / "refs" / "main"
    ref.parent.mkdir(parents=True, exist_ok=True)
    new = ref.with_name(f"main.{os.getpid()}")
    new.write_text(commit)
    os.replace(new, ref)


def incomplete(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def partial_size(home: Path, file: File) -> int:
    partial = incomplete(home / "blobs" / file.etag)
    return min(partial.stat().st_size, file.size) if file.sha256 and partial.exists() else 0


def existing(path: Path) -> Path:
    """The deepest folder on the way to `path` that is there."""
    return next(each for each in (path, *path.parents) if each.exists())
