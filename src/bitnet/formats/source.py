"""One model file, read by position: every byte asked for is checked against the file's size first.

Reads copy (`pread`), and nothing is mapped: a file that is cut short or replaced while it is open then gives a
FormatError, where a memory mapping of it would kill the process with SIGBUS.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, ModelError

Bytes = NDArray[np.uint8]


class SourceFile:
    """An open regular file. Directories, pipes and devices are refused before they are opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = regular_file(path)
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise ModelError(f"{path} cannot be opened: {error.strerror}.") from error

    def read(self, offset: int, nbytes: int) -> Bytes:
        """A fresh array of exactly `nbytes` bytes from `offset`."""
        self._check(offset, nbytes)
        data = np.empty(nbytes, np.uint8)
        into, done = data.data, 0
        while done < nbytes:
            try:
                count = os.preadv(self._fd, [into[done:]], offset + done)
            except OSError as error:
                raise FormatError(f"{self.path} cannot be read at byte {offset + done:,}: {error.strerror}.") from error
            if count == 0:
                raise self._shrunk(offset + done)
            done += count
        return data

    def fileno(self) -> int:
        """The descriptor, for whoever reads by position himself; open until `close`."""
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def _check(self, offset: int, nbytes: int) -> None:
        if self._fd < 0:
            raise FormatError(f"{self.path} is closed.")
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise FormatError(f"{self.path} has {self.size:,} bytes; byte {offset + nbytes:,} was asked for.")
        if os.fstat(self._fd).st_size < offset + nbytes:
            raise self._shrunk(os.fstat(self._fd).st_size)

    def _shrunk(self, at: int) -> FormatError:
        return FormatError(
            f"{self.path} ends at byte {at:,}; it had {self.size:,} bytes when it was opened.",
            "Another process changed the file. Download or convert it again, then reload.",
        )


def read_file(path: Path, most: int) -> bytes:
    """All of a file; FormatError where it has more than `most` bytes."""
    source = SourceFile(path)
    try:
        if source.size > most:
            raise FormatError(f"{path} has {source.size:,} bytes; at most {most:,} are accepted.")
        return source.read(0, source.size).tobytes()
    finally:
        source.close()


def regular_file(path: Path) -> int:
    """The size of the regular file at `path`; ModelError when it cannot be had, FormatError when it is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}.") from error
    if not stat.S_ISREG(status.st_mode):
        raise FormatError(f"{path} is a {_kind(status.st_mode)}, not a model file.")
    return status.st_size


def _kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
