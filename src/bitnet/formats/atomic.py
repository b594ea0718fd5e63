"""Write a file so that nothing is ever found under its name but the whole of it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bitnet.errors import ParameterError, ResourceError


@contextmanager
def replacing(path: Path, nbytes: int = 0) -> Iterator[BinaryIO]:
    """A file to write in the folder of `path`; it takes that name when the block ends, and vanishes when it raises.

    nbytes: how much will be written; a disk with less space is refused at once. After a crash or a power cut the old
    file, if there was one, is still whole; a hidden `.NAME.*.partial` may be left beside it.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ParameterError(
            f"{path} {'is a directory' if path.is_dir() else 'is in a directory that does not exist'}."
        )
    free = shutil.disk_usage(path.parent).free
    if free < nbytes:
        raise ResourceError(f"{path} takes {nbytes:,} bytes; {free:,} are free on that disk.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system lets a folder be opened."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
