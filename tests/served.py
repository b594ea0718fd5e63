"""`bitnet serve` as a process, for those who come from outside."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import serving


class Served:
    """`bitnet serve`, which can be ended and started again on its port."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("BITNET_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bitnet", "serve", "--port", str(self.port), *self._arguments],
            env={**inherited, "BITNET_BACKEND": serving.BACKEND},
            stderr=subprocess.DEVNULL,
        )
        serving.wait_until(self.ready)

    def ready(self) -> bool:
        assert self._process.poll() is None
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/ready", timeout=serving.PATIENCE).status_code == 200
        return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def metric(self, name: str) -> float:
        """The sum over all series of a name, or what one series says."""
        text = httpx.get(f"{self.url}/metrics", timeout=serving.PATIENCE).text
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.M))


@contextlib.contextmanager
def served(*arguments: str) -> Iterator[Served]:
    process = Served(*arguments)
    try:
        yield process
    finally:
        process.kill()
