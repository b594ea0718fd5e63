"""A peer seen from our side: a process that is asked line by line, and may fail, crash or hang."""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from bitnet.bench.engines import Engine
from bitnet.bench.results import Facts
from bitnet.bench.speed import Sample, Test

PATIENCE = 900.0  # seconds for one answer


class PeerError(Exception):
    """A peer cannot take part, or not any longer; the text says why."""


class Process:
    """A child that answers every line of JSON with one."""

    def __init__(self, command: Sequence[str], patience: float = PATIENCE) -> None:
        self._patience = patience
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (a pipe that nobody reads would fill up)
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True
            )
        except OSError as error:
            self._said.close()
            raise PeerError(f"{command[0]}: {error.strerror or error}") from None
        self._lines: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._child.stdin is not None
        with suppress(OSError):  # it has ended: the missing answer tells
            print(json.dumps(request), file=self._child.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer; PeerError where there is none, in time, or it tells of an error."""
        try:
            line = self._lines.get(timeout=self._patience)
        except queue.Empty:
            raise PeerError(f"no answer within {self._patience:.0f} s") from None
        if not line:
            raise PeerError(f"it ended with {self._child.wait()}{self._last_words()}")
        try:
            answer = json.loads(line)
        except ValueError:
            raise PeerError(f"its answer is {line[:80]!r}") from None
        if not isinstance(answer, dict) or "error" in answer:
            raise PeerError(answer["error"] if isinstance(answer, dict) else f"its answer is {line[:80]!r}")
        return answer

    def _last_words(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """End it, first politely."""
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.close()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._listener.join(5)
        if self._child.stdout is not None and not self._listener.is_alive():
            self._child.stdout.close()
        self._said.close()


class Peer(Engine):
    """A model loaded by a peer."""

    def __init__(self, process: Process, facts: Facts) -> None:
        self.facts, self._process, self._peak = facts, process, 0

    def timed(self, test: Test, threads: int) -> Sample:
        answer = self._process.ask(threads=threads, prompt=test.n_prompt, generate=test.n_gen, depth=test.n_depth)
        try:
            sample = Sample(int(answer["ns"]), int(answer["first_ns"]), tuple(map(int, answer["token_ns"])))
            self._peak = int(answer.get("peak_rss") or 0)
        except (KeyError, TypeError, ValueError) as error:
            raise PeerError(f"its answer lacks something: {error!r}") from None
        if sample.ns <= 0:
            raise PeerError(f"it says that {test.name} took {sample.ns} ns")
        return sample

    def peak_rss(self) -> int | None:
        return self._peak or None

    def close(self) -> None:
        self._process.close()
