"""The server as clients meet it: uvicorn on a port of its own, in a thread of the test's process."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import scripted
import tiny

from bitnet import BitNet
from bitnet.engine import LLM, EngineConfig
from bitnet.server.app import create_app
from bitnet.server.listen import bind, make_server, url
from bitnet.server.registry import Registry
from bitnet.server.settings import Settings
from bitnet.tokenizer.chat import PLAIN, ChatTemplate

BACKEND = "cpu" if tiny.usable_isas() else "reference"
Opener = Callable[[], Any]
PATIENCE = 60.0  # seconds


class Client(httpx.Client):
    """app: the application that it talks to. stop: ends the server as SIGTERM does."""

    app: Any
    stop: Callable[[], None]
    thread: threading.Thread

    def chat(self, content: str = "the end", **options: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, **options}
        return self.post("/v1/chat/completions", json=body)

    def events(self, path: str, **body: Any) -> list[Any]:
        """The data of each event of a stream, decoded; "[DONE]" as it is."""
        with self.stream("POST", path, json={"stream": True, **body}) as response:
            assert response.status_code == 200, response.read()
            return list(decoded(response))


def connection(client: Client) -> socket.socket:
    """Bytes to the server and back, for what no HTTP client would do."""
    return socket.create_connection((client.base_url.host, client.base_url.port), PATIENCE)


def decoded(response: httpx.Response) -> Iterator[Any]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            data = line.removeprefix("data: ")
            yield data if data == "[DONE]" else json.loads(data)


@contextmanager
def serving(models: Mapping[str, Opener] | Opener, **settings: Any) -> Iterator[Client]:
    """A client of a server with these models, the first of them loaded."""
    with listening(models, **settings) as client:
        wait_until(lambda: client.get("/ready").status_code == 200)
        yield client


@contextmanager
def listening(models: Mapping[str, Opener] | Opener, **settings: Any) -> Iterator[Client]:
    """The same, as soon as it listens."""
    chosen = Settings(**settings)
    app = create_app(Registry(models if isinstance(models, Mapping) else {"tiny": models}, chosen), chosen)
    bound, listening = bind(chosen.host, 0), threading.Event()
    server = make_server(app, listening.set)
    thread = threading.Thread(target=lambda: server.run([bound]), name="server")
    thread.start()
    assert listening.wait(PATIENCE)
    headers = {"Authorization": f"Bearer {chosen.api_key[0]}"} if chosen.api_key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    with Client(base_url=url(chosen.host, bound), timeout=PATIENCE, headers=headers, limits=limits) as client:
        client.app, client.stop, client.thread = app, server.stop, thread
        try:
            yield client
        finally:
            if thread.is_alive():
                server.stop()
                server.stop()
            thread.join(PATIENCE)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(round(PATIENCE / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("nothing came of it")


def opener(path: Path, **options: Any) -> Opener:
    return lambda: BitNet(path, **{"threads": 1, "backend": BACKEND, **options})


class Stand:
    """An engine where a BitNet is expected, for models that are made up."""

    def __init__(self, llm: LLM, name: str = "stand") -> None:
        self.llm, self.tokenizer, self.path, self.pooling = llm, llm.tokenizer, Path(name), "last"
        self.chat_template = ChatTemplate(PLAIN, "plain")

    def close(self) -> None:
        pass


def stand(model: Any, **config: Any) -> Opener:
    return lambda: Stand(LLM(model, tiny.tokenizer(), EngineConfig(**config)))


class Paced(scripted.Scripted):
    """Says one token for ever, a step each time it is let: `steps` None: as fast as it goes."""

    def __init__(self, script: Sequence[int] = (65,), steps: Pace | None = None, **options: Any) -> None:
        beginning = tiny.tokenizer().bos_id
        assert beginning is not None
        super().__init__({beginning: script}, **{"context": 4096, **options})
        self.steps = steps

    def __call__(self, step: Any, cache: Any) -> Any:
        if self.steps is not None:
            assert self.steps.acquire(timeout=PATIENCE)
        return super().__call__(step, cache)


class Pace:
    """Lets a model go on by so many steps, or for ever."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self._steps = threading.Semaphore(0)

    def acquire(self, timeout: float) -> bool:
        return self.free.is_set() or self._steps.acquire(timeout=timeout)

    def allow(self, count: int) -> None:
        self._steps.release(count)

    def end(self) -> None:
        self.free.set()
        self._steps.release()
