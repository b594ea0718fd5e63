"""Asking for /metrics, and what can come instead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from served_metrics import ServedMetrics

from bitnet.errors import ScrapeError
from bitnet.monitor.reader import metrics_url, parse, scrape

Answer = tuple[int, bytes]
Serve = Callable[[Answer], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Answer every request alike; with a key only those that have it."""
    servers = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                allowed = answer[0] != 401 or self.headers["Authorization"] == "Bearer sesame"
                self.send_response(200 if allowed and answer[0] == 401 else answer[0])
                self.end_headers()
                self.wfile.write(answer[1] if self.path == "/metrics" else b"elsewhere")

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_a_server_says_is_read(serve: Serve) -> None:
    served = ServedMetrics()
    served.tell("temperature_celsius", 51.5, sensor='odd "name"\n\\')
    served.count("prompt_tokens", 12)
    found = scrape(serve((200, served.text().encode())))
    assert found.by("bitnet_temperature_celsius", "sensor") == {'odd "name"\n\\': 51.5}
    assert found.total("bitnet_prompt_tokens_total") == 12
    assert found.total("bitnet_power_watts") is None


def test_a_key_opens_what_is_closed(serve: Serve) -> None:
    url = serve((401, ServedMetrics().text().encode()))
    with pytest.raises(ScrapeError, match="wants a key"):
        scrape(url)
    assert scrape(url, "sesame").total("bitnet_info") == 1


@pytest.mark.parametrize(
    "answer, message",
    [
        ((200, b"<html>hello</html>"), "Prometheus"),
        ((200, b'bitnet_x{a="b'), "Prometheus"),
        ((200, b"bitnet_x 1 2 3 4 five"), "Prometheus"),
        ((200, b"\xff\xfe{}"), "Prometheus"),
        ((404, b""), "404"),
        ((503, b"loading"), "503"),
    ],
)
def test_other_answers_are_said_and_raise_nothing_else(serve: Serve, answer: Answer, message: str) -> None:
    with pytest.raises(ScrapeError, match=message):
        scrape(serve(answer))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://[::1", "file:///etc/passwd", "http://x:port", ""])
def test_nobody_there_is_said(url: str) -> None:
    with pytest.raises(ScrapeError):
        scrape(url, timeout=5)


@pytest.mark.parametrize("given", ["localhost:80", "http://localhost:80/", "http://localhost:80/metrics"])
def test_an_address_may_be_short(given: str) -> None:
    assert metrics_url(given) == "http://localhost:80/metrics"


def test_an_empty_text_is_an_empty_snapshot() -> None:
    assert parse("", now=1.0).samples == {}
