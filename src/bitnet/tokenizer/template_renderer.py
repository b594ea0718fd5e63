"""Runs template_worker as a child process: a stored template is a program by a stranger."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import Any

from bitnet.errors import FormatError, ParameterError, ResourceError

MAX_SOURCE = 1 << 20  # bytes
MAX_SECONDS = 5.0
_WORKER = Path(__file__).with_name("template_worker.py")
_KEPT = (
    "SYSTEMROOT",
    "TMP",
    "TEMP",
    "TZ",
    "LD_LIBRARY_PATH",
)  # the rest of the environment is not the child's business


class Renderer:
    """One child, started when first needed and again after it was killed; renders one template at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0

    def render(self, source: str, variables: dict[str, Any], seconds: float = MAX_SECONDS) -> str:
        """The rendered text. FormatError: the template is at fault; ParameterError: it refuses these messages."""
        if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE:
            raise FormatError(f"The chat template has more than {MAX_SOURCE} bytes.")
        request = _to_line({"source": source, "variables": variables})
        with self._lock:
            started = monotonic()
            line = self._ask(request, seconds)
            late = monotonic() - started >= seconds
            if late or not line.endswith("\n"):
                self.close()  # killed, or about to be
        if not line.endswith("\n"):
            reason = f"did not finish in {seconds:g} seconds" if late else "ended the process that rendered it"
            raise FormatError(f"The chat template {reason}.", "Another one can be given in its place.")
        return _result(json.loads(line))

    def _ask(self, request: str, seconds: float) -> str:
        """The child's reply; what is cut short when the child was killed or died."""
        process = self._child()
        timer = threading.Timer(seconds, process.kill)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdin and process.stdout
            process.stdin.write(request)
            process.stdin.flush()
            return process.stdout.readline()
        except (BrokenPipeError, ValueError):
            return ""
        finally:
            timer.cancel()

    def _child(self) -> subprocess.Popen[str]:
        mine = self._owner == os.getpid()  # after a fork the child belongs to the parent
        if self._process is None or not mine or self._process.poll() is not None:
            self._process, self._owner = _start(), os.getpid()
        return self._process

    def close(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[str]:
    environment = {name: os.environ[name] for name in _KEPT if name in os.environ}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONIOENCODING": "utf-8"}
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-S", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            encoding="utf-8",
        )
    except OSError as error:
        raise ResourceError(f"The process that renders chat templates cannot be started: {error}") from error


def _to_line(request: dict[str, Any]) -> str:
    try:
        return json.dumps(request) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ParameterError(f"The messages cannot be written as JSON: {error}.") from error


def _result(reply: dict[str, Any]) -> str:
    if "text" in reply:
        return str(reply["text"])
    message = reply["message"]
    if reply["error"] == "raised":
        raise ParameterError(f"The chat template refuses these messages: {message}")
    raise FormatError(f"The chat template cannot be rendered: {message}.", "Another one can be given in its place.")


def render_here(source: str, variables: dict[str, Any]) -> str:
    """As `Renderer.render`, in this process: for bitnet's own templates."""
    from bitnet.tokenizer.template_worker import answer

    return _result(answer({"source": source, "variables": variables}))


RENDERER = Renderer()
atexit.register(RENDERER.close)
