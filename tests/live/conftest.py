"""A browser, and `bitnet serve` as a process beside it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import serving

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without these it looks for Google's hosts at every start.
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """For a module: while Playwright runs, nobody else can run an event loop in this thread."""
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        own = running.chromium.executable_path
        found = next(filter(None, map(shutil.which, BROWSERS)), own if os.path.exists(own) else None)
        if found is None:
            pytest.skip("there is no Chromium here: apt-get install chromium")
        opened = running.chromium.launch(executable_path=found, args=list(QUIET))
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Opens pages that have nothing remembered; none may fail in its scripts or ask another host."""
    contexts, faults = [], []

    def note(request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "blob:", "data:")):
            faults.append(request.url)

    def complain(message: Any) -> None:
        # An answer that is an error is said to the console by Chromium itself.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            faults.append(message.text)

    def open(url: str, **options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options}))
        contexts[-1].set_default_timeout(1000 * serving.PATIENCE)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", complain)
        page.on("request", note)
        page.goto(url)
        return page

    yield open
    for context in contexts:
        context.close()
    assert not faults


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
