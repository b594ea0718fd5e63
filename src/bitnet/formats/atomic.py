"""Write a file, or a folder of files, so that nothing is ever found under its name but the whole of it.

What is being written is called `.NAME.partial` and locked. The lock dies with the process that holds it, so whoever
comes after a `kill -9` finds the leftover unlocked and takes it over; whoever comes during the work is refused.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bitnet.errors import ParameterError, ResourceError

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be replaced anyway
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(path: Path, nbytes: int = 0) -> Iterator[BinaryIO]:
    """A file to write in the folder of `path`; it takes that name when the block ends, and vanishes when it raises.

    nbytes: how much will be written; a disk with less space is refused at once. After a crash or a power cut the old
    file, if there was one, is still whole; a hidden `.NAME.partial` may be left beside it, which the next one reuses.
    """
    if path.is_dir():
        raise ParameterError(f"{path} is a directory.")
    temporary = partial_name(path, nbytes)
    try:
        descriptor = _locked(temporary, os.O_RDWR | os.O_CREAT)
        with open(descriptor, "r+b") as file:
            try:
                file.truncate()
                yield file
                file.flush()
                os.fsync(descriptor)
                os.replace(temporary, path)
            except BaseException:
                _forget(temporary)
                raise
        _sync(path.parent)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}.") from error


@contextmanager
def replacing_folder(path: Path, nbytes: int = 0) -> Iterator[Path]:
    """An empty folder to fill beside `path`; it takes that name when the block ends, and vanishes when it raises.

    A folder that had the name is moved aside first and deleted last: a crash between the two leaves it as `.NAME.old`.
    """
    if path.exists() and not path.is_dir():
        raise ParameterError(f"{path} is a file.")
    temporary, aside = partial_name(path, nbytes), path.with_name(f".{path.name}.old")
    try:
        temporary.mkdir(exist_ok=True)
        descriptor = _locked(temporary, os.O_RDONLY)
        try:
            _empty(temporary)
            yield temporary
            for each in temporary.rglob("*"):
                _sync(each)
            _sync(temporary)
            if path.exists():
                shutil.rmtree(aside, ignore_errors=True)
                os.rename(path, aside)
            os.rename(temporary, path)
            _sync(path.parent)
            shutil.rmtree(aside, ignore_errors=True)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}.") from error


def partial_name(path: Path, nbytes: int) -> Path:
    """Where `path` grows; ParameterError where there is no folder for it, ResourceError where the disk is too full."""
    if not path.parent.is_dir():
        raise ParameterError(f"{path} is in a directory that does not exist.")
    temporary = path.with_name(f".{path.name}.partial")
    with suppress(OSError):
        leftover = temporary.stat().st_size if temporary.is_file() else 0
        free = shutil.disk_usage(path.parent).free + leftover
        if free < nbytes:
            raise ResourceError(f"{path} takes {nbytes:,} bytes; {free:,} are free on that disk.")
    return temporary


def _locked(path: Path, flags: int) -> int:
    """A descriptor of `path`, which no other process has locked."""
    while True:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two lines whoever had it may have renamed it: then this is the finished one.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise ResourceError(
                f"Another process is writing {path.name.removeprefix('.').removesuffix('.partial')} in {path.parent}.",
                "Wait for it, or write to another name.",
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()


def _sync(path: Path) -> None:
    """Make a file, or the names in a folder, durable where the system lets it be opened."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
