"""`bitnet top` on a terminal of its own, beside a server that comes and goes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from served_metrics import ServedMetrics

from bitnet.cli.main import main

PATIENCE = 60.0
TOP = (sys.executable, "-m", "bitnet", "top")
LEFT = "\x1b[?1049l"  # the alternate screen is left


class Server:
    """Stands in for `bitnet serve`; its port stays its own while it is down."""

    def __init__(self) -> None:
        self.metrics, self.key, self.mute = ServedMetrics(start=1.0), "", threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = not outer.key or self.headers["Authorization"] == f"Bearer {outer.key}"
                if outer.mute.is_set():
                    time.sleep(PATIENCE)
                with suppress(OSError):  # who asked may have left
                    self.send_response(200 if allowed else 401)
                    self.end_headers()
                    self.wfile.write(outer.metrics.text().encode() if allowed else b"")

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class Terminal:
    """A process on a pseudo-terminal, and all that it has written there."""

    def __init__(self, *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        environment = {**os.environ, "TERM": "xterm", "BITNET_API_KEY": ""}
        self.process = subprocess.Popen(
            [*TOP, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        self._slave, self.written = slave, ""

    def see(self, wanted: str) -> None:
        """Waits until it has been written since the last time."""
        deadline, start = time.monotonic() + PATIENCE, len(self.written)
        while wanted not in plain(self.written[start:]):
            assert time.monotonic() < deadline, plain(self.written[start:])
            self.read()

    def read(self) -> None:
        if select.select([self.master], [], [], 0.1)[0]:
            self.written += os.read(self.master, 65536).decode(errors="replace")

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self) -> int:
        """How it ended, with the terminal as it was."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read()
        self.read()
        assert termios.tcgetattr(self._slave) == self.before
        return self.process.wait(1)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for each in (self.master, self._slave):
            with suppress(OSError):
                os.close(each)


def plain(text: str) -> str:
    """Without colours, and in one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).split())


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def top(server: Server) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal("--url", server.url, "--interval", "0.1", *arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_it_says_what_becomes_of_the_server_until_q_is_pressed(server: Server, top: Callable[..., Terminal]) -> None:
    server.metrics.set("requests_running", 3)
    terminal = top()
    terminal.see("3 running")
    server.key = "sesame"
    terminal.see("wants a key")
    server.key, server.metrics = "", ServedMetrics(start=2.0)
    terminal.see("started anew")
    server.close()
    terminal.see("does not answer")
    terminal.type("q")
    assert terminal.end() == 0 and LEFT in terminal.written


@pytest.mark.parametrize("how, code", [("\x03", 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_it_leaves_a_terminal_as_it_was(
    how: str | int, code: int, server: Server, top: Callable[..., Terminal]
) -> None:
    terminal = top()
    terminal.see("live")
    if isinstance(how, str):
        os.killpg(terminal.process.pid, signal.SIGINT)  # as Ctrl-C does
    else:
        terminal.process.send_signal(how)
    assert terminal.end() == code and LEFT in terminal.written


def test_suspended_it_leaves_the_terminal_to_the_shell_and_comes_back(
    server: Server, top: Callable[..., Terminal]
) -> None:
    terminal = top()
    terminal.see("live")
    os.killpg(terminal.process.pid, signal.SIGTSTP)  # as Ctrl-Z does
    os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED)
    terminal.read()
    assert LEFT in terminal.written and termios.tcgetattr(terminal.master) == terminal.before
    terminal.written = ""
    server.metrics.set("requests_running", 3)
    terminal.process.send_signal(signal.SIGCONT)
    terminal.see("3 running")
    terminal.type("q")
    assert terminal.end() == 0 and LEFT in terminal.written


def test_a_server_that_hangs_does_not_hold_it(server: Server, top: Callable[..., Terminal]) -> None:
    server.mute.set()
    terminal = top()
    terminal.see("asking")
    terminal.type("q")
    assert terminal.end() == 0


def test_a_wrong_key_is_told_from_none(server: Server, top: Callable[..., Terminal]) -> None:
    server.key = "sesame"
    terminal = top("--api-key", "guess")
    terminal.see("does not accept the key")


def test_without_a_terminal_it_looks_once(server: Server) -> None:
    done = subprocess.run([*TOP, "--url", server.url, "--interval", "0.1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "0 running" not in done.stderr
    assert done.stdout.startswith("bitnet ") and "\x1b" not in done.stdout


def test_json_goes_on_a_line_a_look(server: Server) -> None:
    command = [*TOP, "--json", "--url", server.url, "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        first = json.loads(process.stdout.readline())
        server.key = "sesame"
        found = json.loads(process.stdout.readline())
        while "error" not in found:
            found = json.loads(process.stdout.readline())
        process.terminate()
    assert first["version"] == "0.1.0" and "wants a key" in found["error"]


def test_monitor_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("bitnet.cli.monitor.find_spec", lambda name: None if name == "streamlit" else True)
    with pytest.raises(SystemExit) as end:
        main(["monitor"])
    said = capsys.readouterr().err
    assert end.value.code == 2 and "needs streamlit" in said and "pip install 'bitnet[monitor]'" in said
