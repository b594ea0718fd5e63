"""`bitnet monitor`: its page, as Streamlit runs it, beside a server that comes and goes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from served_metrics import ServedMetrics

import bitnet.monitor

pytest.importorskip("streamlit")
pytest.importorskip("plotly")

from streamlit.testing.v1 import AppTest

PATIENCE = 60.0
PAGE = Path(bitnet.monitor.__file__).with_name("dashboard.py")


class Server:
    """Stands in for `bitnet serve`; status: what it answers with."""

    def __init__(self) -> None:
        self.metrics, self.status = ServedMetrics(start=1.0), 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.metrics.count("generation_tokens", 5)
                outer.metrics.observe("time_to_first_token", 0.03)
                self.send_response(outer.status)
                self.end_headers()
                self.wfile.write(outer.metrics.text().encode() if outer.status == 200 else b"")

            def log_message(self, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    import streamlit

    found = Server()
    monkeypatch.setenv("BITNET_MONITOR_URL", found.url)
    monkeypatch.setenv("BITNET_MONITOR_INTERVAL", "0.2")
    streamlit.cache_resource.clear()
    yield found
    found.close()


def until(app: AppTest, condition: Callable[[AppTest], object]) -> AppTest:
    deadline = time.monotonic() + PATIENCE
    while not condition(app.run(timeout=PATIENCE)):
        assert not app.exception and time.monotonic() < deadline, app
        time.sleep(0.1)
    assert not app.exception
    return app


def charts(app: AppTest) -> dict[str, Any]:
    """By title, the specification that goes to the browser."""
    import json

    found = [json.loads(each.proto.spec) for each in app.get("plotly_chart")]
    return {each["layout"]["title"]["text"]: each for each in found}


def values(app: AppTest) -> dict[str, str]:
    return {each.label: each.value for each in app.metric}


def test_figures_and_their_history_are_shown(server: Server) -> None:
    told = server.metrics
    told.set("requests_running", 3)
    told.set("kv_cache_usage_ratio", 0.25)
    told.tell("temperature_celsius", 51.5, sensor="cpu")
    told.tell("memory_used_bytes", 3 * 2**30)
    for core in "01":
        told.tell("cpu_usage_ratio", 0.5, core=core)
    app = until(AppTest.from_file(PAGE), lambda app: "Throughput, tok/s" in charts(app))
    found = values(app)
    assert (found["Running / waiting"], found["KV cache"], found["CPU"]) == ("3 / ?", "25 %", "50 %")
    assert (found["Temperature"], found["Memory"], found["Power"]) == ("51.5 °C", "3.00 GiB", "not reported")
    drawn = charts(app)
    assert {"Time to first token, ms", "CPU, % of each core", "Memory, GiB", "Temperature, °C"} <= drawn.keys()
    assert "Power, W" not in drawn and "not reported" in [each.value for each in app.caption]
    assert [line["name"] for line in drawn["CPU, % of each core"]["data"]] == ["core 0", "core 1"]


def test_a_server_that_is_down_or_started_anew_is_said(server: Server) -> None:
    app = until(AppTest.from_file(PAGE), lambda app: values(app))
    server.status = 503
    until(app, lambda app: app.warning)
    assert "status 503" in app.warning[0].value and values(app)
    server.metrics, server.status = ServedMetrics(start=2.0), 200
    until(app, lambda app: app.info)
    assert "started anew" in app.info[0].value and not app.warning


def test_a_server_that_never_answered_is_said(server: Server) -> None:
    server.status = 401
    app = AppTest.from_file(PAGE).run(timeout=PATIENCE)
    assert not app.exception and "wants a key" in app.warning[0].value and "--api-key" in app.warning[0].value
    server.close()
    until(app, lambda app: "does not answer" in app.warning[0].value)


def test_the_command_serves_the_page_and_ends_when_told(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bitnet", "monitor", "--url", server.url, "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BITNET_")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        while "http://127.0.0.1" not in (line := process.stdout.readline()):
            assert line
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=PATIENCE) as answer:
            assert b"streamlit" in answer.read().lower()
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert "Traceback" not in process.stdout.read()
    finally:
        process.kill()
        process.wait()
