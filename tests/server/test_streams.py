"""Answers on their way: what a stream may show, when it breaks, and who hears of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import serving
import tiny

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK = {"messages": [{"role": "user", "content": "a"}], "temperature": 0}


@contextlib.contextmanager
def saying(text: str | Sequence[int], **options: Any) -> Iterator[serving.Client]:
    """A server whose model writes this after the prompt "": it is the begin-of-text token alone."""
    tokenizer = tiny.tokenizer()
    answer = tokenizer.encode(text, add_special=False) if isinstance(text, str) else list(text)
    model = serving.Paced([0, *answer, *tokenizer.eos_ids])
    with serving.serving(serving.stand(model), **options) as client:
        yield client


def texts(client: serving.Client, **body: Any) -> tuple[list[str], Any]:
    """The pieces of a completion and the reason for its end."""
    *events, done = client.events(COMPLETIONS, prompt="", temperature=0, max_tokens=50, **body)
    assert done == "[DONE]"
    return [event["choices"][0]["text"] for event in events], events[-1]["choices"][0]["finish_reason"]


@pytest.mark.parametrize("stop", ["ter the", ["in", "ter"], "the", ["zzz", "er"]])
def test_no_part_of_a_stop_string_is_shown(stop: Any) -> None:
    said = "an inner thing inter the rain"
    first = min(said.find(each) for each in ([stop] if isinstance(stop, str) else stop) if each in said)
    with saying(said) as client:
        pieces, reason = texts(client, stop=stop)
        assert "".join(pieces) == said[:first] and reason == "stop"
        whole = client.post(COMPLETIONS, json={"prompt": "", "temperature": 0, "max_tokens": 50, "stop": stop}).json()
        assert whole["choices"][0]["text"] == said[:first]


def test_characters_of_several_tokens_come_whole() -> None:
    said = "a 😀 é 👩‍👩‍👧 z"
    with saying(said) as client:
        pieces, _ = texts(client)
        assert "".join(pieces) == said and "\ufffd" not in "".join(pieces)


def test_bytes_that_are_no_text_are_shown_as_such_and_never_break_the_stream() -> None:
    broken = tiny.tokenizer().encode("😀", add_special=False)[:2]
    with saying([*broken, *tiny.tokenizer().encode("a", add_special=False)]) as client:
        assert "".join(texts(client)[0]) == "\ufffda"


def test_logprobs_of_a_text_that_was_stopped_are_of_what_is_shown() -> None:
    model = serving.Paced([0] * 3 + tiny.tokenizer().encode("x the rain y", add_special=False))
    with serving.serving(serving.stand(model)) as client:
        ask = {"messages": [{"role": "user", "content": "a"}], "temperature": 0, "max_tokens": 40}
        whole = client.post(CHAT, json={**ask, "logprobs": True}).json()["choices"][0]
        cut = whole["message"]["content"].find("ain")
        choice = client.post(CHAT, json={**ask, "logprobs": True, "stop": "ain"}).json()["choices"][0]
        assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == choice["message"]["content"]
        assert cut < 0 or choice["message"]["content"] == whole["message"]["content"][:cut]


def test_logits_that_are_no_numbers_are_an_error_with_the_requests_id(caplog: pytest.LogCaptureFixture) -> None:
    with serving.serving(serving.stand(serving.Paced([65, 65, 65, -1]))) as client:
        response = client.post(COMPLETIONS, json={"prompt": "", "max_tokens": 9}, headers={"X-Request-Id": "my-id"})
        assert response.status_code == 500
        error = response.json()["error"]
        assert error["type"] == "server_error" and "my-id" in error["message"] and "not numbers" in error["message"]
        *events, last = client.events(COMPLETIONS, prompt="", max_tokens=9)
        assert "error" not in events[0] and last["error"]["type"] == "server_error"  # and no [DONE]
        assert client.get("/ready").status_code == 200
        assert 'outcome="error"} 2.0' in client.get("/metrics").text


def test_a_stream_that_is_silent_is_kept_alive() -> None:
    pace = serving.Pace()
    with serving.serving(serving.stand(serving.Paced(steps=pace)), ping_interval=0.05) as client:
        with client.stream("POST", CHAT, json={**ASK, "stream": True, "max_tokens": 2}) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")  # the role: at once
            assert [next(lines) for _ in range(5)][1:] == [": ping", ""] * 2
            pace.end()
            rest = [line for line in lines if line.startswith("data: ")]
        assert rest[-1] == "data: [DONE]" and json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"


@pytest.fixture
def slow() -> Iterator[tuple[serving.Client, serving.Pace]]:
    """A model that goes on when it is told to; two at once."""
    pace = serving.Pace()
    with serving.serving(serving.stand(serving.Paced(steps=pace), max_sequences=2, chunk=16)) as client:
        try:
            yield client, pace
        finally:
            pace.end()


def leave(client: serving.Client, **body: Any) -> Any:
    """A request that is under way, as a socket to be closed."""
    data = json.dumps({**ASK, **body}).encode()
    raw = serving.connection(client)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    raw.sendall(head.encode() + data)
    return raw


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_who_leaves_is_not_worked_for_and_the_others_are(
    slow: tuple[serving.Client, serving.Pace], phase: str, stream: bool
) -> None:
    client, pace = slow
    served = client.app.state.server.registry.loaded["tiny"]
    scheduler, neighbours = served.model.llm.scheduler, 1 + (phase == "queued")
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(client.post, CHAT, json={**ASK, "max_tokens": 60}) for _ in range(neighbours)]
        serving.wait_until(lambda: served.admission.active == len(others))
        long = {"messages": [{"role": "user", "content": "a" * 600}]} if phase == "prefill" else {}
        raw = leave(client, stream=stream, max_tokens=3000, **long)
        if phase == "queued":
            serving.wait_until(lambda: served.admission.waiting == 1)
        else:
            serving.wait_until(lambda: served.admission.active == 2)
            pace.allow(6)
            mine = lambda: max(scheduler.running, key=lambda s: s.params.max_tokens, default=None)  # noqa: E731
            ready = (lambda s: 0 < s.computed < len(s.prompt)) if phase == "prefill" else (lambda s: s.output)
            serving.wait_until(lambda: mine() and mine().params.max_tokens == 3000 and ready(mine()))
        raw.close()
        if phase == "queued":
            serving.wait_until(lambda: served.admission.waiting == 0)
        pace.end()
        assert {other.result().json()["usage"]["completion_tokens"] for other in others} == {60}
        serving.wait_until(lambda: served.admission.active == served.service.running == 0)
    assert not scheduler.running and not scheduler.waiting
    assert scheduler.pool.free == scheduler.pool.count
    counts = [line for line in client.get("/metrics").text.splitlines() if line.startswith("bitnet_requests_total")]
    assert sum('outcome="length"' in line for line in counts) == 1
    assert any('outcome="abort"' in line for line in counts) == (phase != "queued")


def test_a_reader_that_does_not_read_holds_up_nobody() -> None:
    """Its place is free when its text is written, and its connection when it has not read for a while."""
    model = serving.stand(serving.Paced(context=4096), max_sequences=1, ctx_size=4096)
    with serving.serving(model, stall_timeout=0.5) as client:
        raw = serving.socket.socket()
        raw.setsockopt(serving.socket.SOL_SOCKET, serving.socket.SO_RCVBUF, 4096)
        raw.connect((client.base_url.host, client.base_url.port))
        data = json.dumps({**ASK, "stream": True, "n": 16, "max_tokens": 4000, "logprobs": True, "top_logprobs": 20})
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        raw.sendall((head + data).encode())
        served = client.app.state.server.registry.loaded["tiny"]
        serving.wait_until(lambda: served.admission.active == 1)
        assert client.chat("a", max_tokens=3).json()["usage"]["completion_tokens"] == 3
        serving.wait_until(lambda: served.admission.active == served.service.running == 0)
        connections = client.app.state.server.lifecycle
        serving.wait_until(lambda: connections.in_flight == 0)
        raw.settimeout(serving.PATIENCE)
        with contextlib.suppress(ConnectionError):
            while raw.recv(1 << 20):
                pass
        raw.close()


def test_a_slow_reader_gets_everything() -> None:
    model = serving.stand(serving.Paced(), max_sequences=1)
    with serving.serving(model) as client:
        raw = leave(client, stream=True, max_tokens=20)
        raw.settimeout(serving.PATIENCE)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += raw.recv(16)
        raw.close()
        assert received.count(b'"content":"') == 1 + 20 and b"data: [DONE]" in received


def test_a_deadline_ends_an_answer_as_it_is() -> None:
    pace = serving.Pace()
    with serving.serving(serving.stand(serving.Paced(steps=pace)), request_timeout=0.3) as client:
        pace.allow(3)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(client.post, CHAT, json={**ASK, "max_tokens": 500})
            serving.threading.Event().wait(0.5)
            pace.end()
            found = future.result().json()
        assert found["choices"][0]["finish_reason"] == "length"
        assert 0 < found["usage"]["completion_tokens"] < 500


def test_neighbours_change_nothing(client: serving.Client) -> None:
    """The same request gives the same tokens whatever else runs."""

    def ask(i: int) -> Any:
        body = {"prompt": f"the {i % 7} rain", "max_tokens": 10 + i % 5, "seed": i % 3, "temperature": 1.2}
        return client.post(COMPLETIONS, json=body).json()["choices"]

    alone = [ask(i) for i in range(24)]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == alone


def test_a_connection_whose_request_does_not_come_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet.server.listen.HEADER_TIMEOUT", 0.3)
    with serving.serving(serving.stand(serving.Paced())) as client:
        silent, dripping = serving.connection(client), serving.connection(client)
        dripping.sendall(b"GET /health HTTP/1.1\r\nHost: local")
        used = serving.connection(client)
        used.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        received = b""
        while not received.endswith(b"}"):
            received += used.recv(4096)
        assert received.startswith(b"HTTP/1.1 200")
        used.sendall(b"GET /hea")
        for raw in (silent, dripping, used):
            with contextlib.suppress(ConnectionError):
                assert raw.recv(4096) == b""
            raw.close()
        long = client.post(COMPLETIONS, json={"prompt": "", "max_tokens": 600})
        assert long.status_code == 200


def test_a_body_that_does_not_come_is_refused() -> None:
    with serving.serving(serving.stand(serving.Paced()), stall_timeout=0.3) as client:
        raw = serving.connection(client)
        raw.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert raw.recv(4096).startswith(b"HTTP/1.1 408")
        raw.close()


@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
def test_a_client_that_leaves_with_half_its_body_sent(client: serving.Client, path: str) -> None:
    raw = serving.connection(client)
    raw.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
    raw.close()
    assert client.get("/ready").status_code == 200
    serving.wait_until(lambda: client.app.state.server.lifecycle.in_flight == 0)


def test_a_thousand_at_once(tiny_gguf: Path) -> None:
    """Nothing is lost and nothing mixed up: each gets its own answer."""
    with serving.serving(serving.opener(tiny_gguf, ctx_size=64, max_sequences=32)) as client:
        expected = [client.post(COMPLETIONS, json=short(i)).json()["choices"] for i in range(10)]

        async def all_of_them() -> list[Any]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=client.base_url, timeout=300, limits=limits) as many:
                return await asyncio.gather(*(many.post(COMPLETIONS, json=short(i)) for i in range(1000)))

        responses = asyncio.run(all_of_them())
        assert [response.status_code for response in responses] == [200] * 1000
        assert [response.json()["choices"] for response in responses] == expected * 100


def short(i: int) -> dict[str, Any]:
    return {"prompt": f"number {i % 10}", "max_tokens": 3, "seed": i % 10}
