"""A file of requests and a file of answers, in OpenAI's batch format, which may be gone on with at any time.

https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from fastapi import FastAPI

from bitnet.errors import ParameterError, ResourceError
from bitnet.server.attend import stop
from bitnet.server.body import parse
from bitnet.server.encoding import to_json
from bitnet.server.errors import ApiError
from bitnet.server.inside import post, running

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
MOST_ID = 512  # characters of a custom_id


@dataclass(slots=True)
class Tally:
    """Lines of the input. answered: with success, now or earlier. skipped: those that had their answer before."""

    answered: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def lines(self) -> int:
        return self.answered + self.failed


class BadLine(Exception):
    """A line that is no request. code: for programs."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Entry:
    """A line that is a request."""

    custom_id: str
    url: str
    body: bytes


class Results:
    """The file of answers. What is in it already stays; half a line at its end, of a process that was killed, goes.

    seen: hashes of the custom_ids, and whether the input has had them yet. bad: numbers of lines told to be bad.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_file():
            raise ParameterError(f"{path} is no file.", "Name a file for the answers.")
        self.path, self.tally = path, Tally()
        self.seen: dict[bytes, bool] = {}
        self.bad: set[int] = set()
        self._file: BinaryIO = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._recall()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(f"Another process is writing {self.path}.", "Wait for it, or name another.") from None

    def _recall(self) -> None:
        end = 0
        with self.path.open("rb") as earlier:
            for number, line in enumerate(earlier, 1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    self._count(json.loads(line))
                except (ValueError, LookupError, TypeError, RecursionError):
                    message = f"Line {number} of {self.path} is no answer of a batch."
                    raise ParameterError(message, "Name another file for the answers.") from None
        self._file.truncate(end)
        self.tally.skipped = self.tally.lines

    def _count(self, record: dict[str, Any]) -> None:
        error, response = record["error"], record["response"]
        if error is not None:
            self.bad.add(int(error["line"]))
        else:
            self.seen[digest(record["custom_id"])] = False
        if error is None and response["status_code"] < 400:
            self.tally.answered += 1
        else:
            self.tally.failed += 1

    def write(self, record: dict[str, Any]) -> None:
        """A whole line or, where the disk is full, an error and half of one, which the next run cuts off."""
        rest = memoryview(to_json({"id": f"batch_req_{secrets.token_hex(12)}", **record}) + b"\n")
        self._count(record)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def digest(custom_id: str) -> bytes:
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Batch:
    """app: it answers; its queue must hold `at_once` requests. show: is told the tally after each line."""

    def __init__(self, app: FastAPI, results: Results, at_once: int, show: Callable[[Tally], None]) -> None:
        self.app, self.results, self.at_once, self.show = app, results, at_once, show
        self.longest: int = app.state.server.settings.max_body

    async def run(self, source: BinaryIO) -> Tally:
        """Answer what has no answer yet, in whatever order the answers come."""
        entries = self._entries(source)
        async with running(self.app):
            workers = [asyncio.ensure_future(self._work(entries)) for _ in range(self.at_once)]
            try:
                await asyncio.gather(*workers)
            finally:
                await stop(*workers)  # before the models are closed, which would pass for an answer
        return self.results.tally

    async def _work(self, entries: Iterator[Entry]) -> None:
        for entry in entries:
            status, request_id, body = await post(self.app, entry.url, entry.body)
            response = {"status_code": status, "request_id": request_id, "body": body}
            self._write({"custom_id": entry.custom_id, "response": response, "error": None})

    def _entries(self, source: BinaryIO) -> Iterator[Entry]:
        """The requests that need an answer; what is wrong with the other lines is told in the results."""
        for number, line in enumerate(read_lines(source, self.longest), 1):
            if not line.strip():
                continue
            request: dict[str, Any] = {}
            try:
                request = parsed(line, self.longest)
                key = digest(id_of(request))
                had = self.results.seen.get(key)
                self.results.seen[key] = True
                if had:
                    raise BadLine("duplicate_custom_id", "An earlier line has the same custom_id.")
                entry = entry_of(request)
                if had is None:
                    yield entry
            except BadLine as bad:
                if number not in self.results.bad:
                    error = {"code": bad.code, "message": str(bad), "line": number}
                    self._write({"custom_id": request.get("custom_id"), "response": None, "error": error})

    def _write(self, record: dict[str, Any]) -> None:
        self.results.write(record)
        self.show(self.results.tally)


def read_lines(source: BinaryIO, longest: int) -> Iterator[bytes]:
    """The lines; of one that is longer, so much that it is seen."""
    while line := source.readline(longest + 1):
        rest = line
        while len(rest) > longest and not rest.endswith(b"\n"):
            rest = source.readline(longest + 1)
        yield line


def parsed(line: bytes, longest: int) -> dict[str, Any]:
    if len(line) > longest:
        raise BadLine("line_too_long", f"The line has more than {longest} bytes.")
    try:
        return parse(line)
    except ApiError as error:
        raise BadLine("invalid_json_line", error.message.replace("The body", "The line")) from None


def id_of(request: dict[str, Any]) -> str:
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MOST_ID:
        raise BadLine("invalid_custom_id", f"custom_id must be a string of 1 to {MOST_ID} characters.")
    return custom_id


def entry_of(request: dict[str, Any]) -> Entry:
    url, body = request.get("url"), request.get("body")
    if request.get("method") != "POST":
        raise BadLine("invalid_method", "method must be POST.")
    if url not in ROUTES:
        raise BadLine("invalid_url", f"url must be one of {', '.join(ROUTES)}.")
    if not isinstance(body, dict):
        raise BadLine("invalid_body", "body must be an object.")
    if body.get("stream"):
        raise BadLine("invalid_body", "The answers of a batch are not streamed.")
    return Entry(request["custom_id"], url, to_json(body))


def answer(app: FastAPI, source: BinaryIO, results: Results, at_once: int, show: Callable[[Tally], None]) -> Tally:
    """Raises BitNetError where the default model cannot be loaded, OSError where an answer cannot be written."""
    return asyncio.run(Batch(app, results, at_once, show).run(source))
