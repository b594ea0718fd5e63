"""Several models: by name only, loaded when asked for, unloaded when idle."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import serving

from bitnet.errors import FormatError
from bitnet.server.registry import HOLDS, Registry
from bitnet.server.settings import Settings

CHAT = "/v1/chat/completions"


def states(client: serving.Client) -> dict[str, str]:
    return {each["id"]: each["state"] for each in client.get("/v1/models").json()["data"]}


class Held:
    """Opens a model when it is let, and counts how often."""

    def __init__(self, opener: serving.Opener) -> None:
        self.opener, self.go, self.count = opener, threading.Event(), 0

    def __call__(self) -> Any:
        self.count += 1
        assert self.go.wait(serving.PATIENCE)
        return self.opener()


def test_a_model_is_loaded_once_by_those_who_ask_and_others_go_on(tiny_gguf: Path) -> None:
    held = Held(serving.opener(tiny_gguf, ctx_size=64))
    models = {"first": serving.stand(serving.Paced()), "second": held}
    with serving.serving(models) as client, ThreadPoolExecutor(3) as pool:
        assert states(client) == {"first": "loaded", "second": "unloaded"}
        waiting = [pool.submit(client.chat, "a", model="second", seed=1) for _ in range(3)]
        serving.wait_until(lambda: states(client)["second"] == "loading")
        assert client.chat("a", model="first").status_code == client.chat("a").status_code == 200
        held.go.set()
        answers = [future.result() for future in waiting]
        assert {answer.status_code for answer in answers} == {200} and held.count == 1
        assert {answer.json()["model"] for answer in answers} == {"second"}
        assert states(client) == {"first": "loaded", "second": "loaded"}


def test_who_leaves_while_a_model_loads_does_not_end_the_loading(tiny_gguf: Path) -> None:
    held = Held(serving.opener(tiny_gguf, ctx_size=64))
    with serving.serving({"first": serving.stand(serving.Paced()), "second": held}) as client:
        raw = serving.connection(client)
        body = '{"model": "second", "messages": [{"role": "user", "content": "a"}]}'
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        raw.sendall((head + body).encode())
        serving.wait_until(lambda: states(client)["second"] == "loading")
        raw.close()
        serving.wait_until(lambda: client.app.state.server.lifecycle.in_flight == 0)
        held.go.set()
        serving.wait_until(lambda: states(client)["second"] == "loaded")


def test_a_model_that_cannot_be_loaded_is_an_error_each_time(tiny_gguf: Path) -> None:
    def broken() -> Any:
        raise FormatError("weights.gguf is damaged.")

    with serving.serving({"first": serving.stand(serving.Paced()), "second": broken}) as client:
        for _ in range(2):
            response = client.chat("a", model="second")
            assert response.status_code == 500 and "damaged" in response.json()["error"]["message"]
        assert states(client)["second"] == "unloaded" and client.chat("a").status_code == 200


def test_a_model_is_not_unloaded_under_a_request_that_has_got_it() -> None:
    async def got() -> None:
        registry = Registry({"stand": serving.stand(serving.Paced())}, Settings(idle_unload=0.01))
        unloading = asyncio.ensure_future(registry.unload_idle())
        with ExitStack() as holds:  # as the gate has it for each request
            HOLDS.set(holds)
            served = await asyncio.ensure_future(registry.get())
            await asyncio.sleep(0.3)  # many times as long as it takes to be idle
            assert registry.loaded == {"stand": served} and served.service.running == 0
        while registry.loaded:
            await asyncio.sleep(0.01)
        unloading.cancel()
        await registry.close()

    asyncio.run(asyncio.wait_for(got(), serving.PATIENCE))


def test_an_idle_model_is_unloaded_and_comes_back(tiny_gguf: Path) -> None:
    pace = serving.Pace()
    models = {"first": serving.opener(tiny_gguf, ctx_size=64), "second": serving.stand(serving.Paced(steps=pace))}
    with serving.serving(models, idle_unload=0.2) as client, ThreadPoolExecutor(1) as pool:
        before = client.chat("a", seed=1).json()["choices"]
        busy = pool.submit(client.chat, "a", model="second", max_tokens=3)
        serving.wait_until(lambda: states(client) == {"first": "unloaded", "second": "loaded"})  # one is in use
        pace.end()
        assert busy.result().status_code == 200
        serving.wait_until(lambda: states(client)["second"] == "unloaded")
        assert client.get("/ready").status_code == 200
        assert client.chat("a", seed=1).json()["choices"] == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "org/name", "", "a\0b", "x" * 5000, "FIRST"])
def test_a_request_never_names_a_file_or_a_repository(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.serving({"first": serving.stand(serving.Paced())}) as client:
        monkeypatch.setattr("bitnet.hub.locate", lambda *_: pytest.fail("looked for a file"))
        response = client.chat("a", model=name)
        assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
        assert client.get(f"/v1/models/{name.replace(chr(0), '%00')}").status_code in (404, 200)


def test_before_the_default_model_is_loaded_the_server_is_not_ready() -> None:
    held = Held(serving.stand(serving.Paced()))
    with serving.listening({"first": held}) as client, ThreadPoolExecutor(1) as pool:
        early = pool.submit(client.chat, "a", max_tokens=2)
        status = client.get("/ready")
        assert status.status_code == 503 and status.json() == {"status": "loading"}
        assert client.get("/health").status_code == 200
        held.go.set()
        assert early.result().status_code == 200  # it waited
        serving.wait_until(lambda: client.get("/ready").status_code == 200)
