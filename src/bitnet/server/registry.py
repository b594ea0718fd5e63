"""The models by name: opened when they are asked for, closed when nobody asks any more."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from bitnet.api import BitNet
from bitnet.engine.service import Service
from bitnet.server.admission import Admission
from bitnet.server.attend import stop
from bitnet.server.errors import ApiError
from bitnet.server.settings import Settings

LOG = logging.getLogger("bitnet.server")
T = TypeVar("T")
# What the present request holds until its answer has been sent: a model that it got must not be unloaded under it.
HOLDS: ContextVar[ExitStack | None] = ContextVar("holds", default=None)
Opener = Callable[[], BitNet]  # what loads a model; runs in a thread


@dataclass(slots=True, eq=False)
class Served:
    """A loaded model. created: Unix time. users: how many requests hold it."""

    name: str
    model: BitNet
    service: Service
    admission: Admission
    created: int
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps the model loaded."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            self.last_used = time.monotonic()

    def close(self) -> None:
        self.service.close()
        self.model.close()


class Registry:
    """models: how to open each, by the name that clients use; the first is the default.

    Only these can be had: a request never names a file or a repository.
    """

    def __init__(self, models: Mapping[str, Opener], settings: Settings) -> None:
        self.models, self.settings = dict(models), settings
        self.default = next(iter(self.models))
        self.created = int(time.time())
        self.loaded: dict[str, Served] = {}
        self._loading: dict[str, asyncio.Task[Served]] = {}

    def state(self, name: str) -> str:
        return "loaded" if name in self.loaded else "loading" if name in self._loading else "unloaded"

    def check(self, name: str | None) -> str:
        """The name, or that of the default model. Raises ApiError 404 where there is none of that name."""
        name = self.default if name is None else name
        if name not in self.models:
            message = f"There is no model {name!r:.80}. This server has: {', '.join(self.models)}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return name

    async def get(self, name: str | None = None) -> Served:
        """The model of that name, or the default one; waits while it loads. Raises ApiError 404.

        It stays loaded for as long as the request that this is called for lasts.
        """
        name = self.check(name)
        while (served := self.loaded.get(name)) is None:
            task = self._loading.get(name)
            if task is None:
                task = self._loading[name] = asyncio.create_task(self._load(name))
            await asyncio.shield(task)  # whoever waits may leave; the others still want it
        served.last_used = time.monotonic()
        holds = HOLDS.get()
        if holds is not None:
            holds.enter_context(served.in_use())
        return served

    async def _load(self, name: str) -> Served:
        try:
            served = await in_daemon(partial(self._open, name))
            self.loaded[name] = served
            return served
        finally:
            del self._loading[name]

    def _open(self, name: str) -> Served:
        started = time.monotonic()
        model = self.models[name]()
        admission = Admission(model.llm.config.max_sequences, self.settings.queue_size, self.settings.queue_timeout)
        LOG.info("model %s is loaded (%.1f s)", name, time.monotonic() - started)
        return Served(name, model, Service(model.llm), admission, self.created)

    async def unload_idle(self) -> None:
        """Runs as long as the server does."""
        patience = self.settings.idle_unload
        while patience:
            await asyncio.sleep(min(1.0, patience / 4))
            now = time.monotonic()
            for name, served in list(self.loaded.items()):
                if not served.users and now - served.last_used >= patience:
                    del self.loaded[name]
                    await asyncio.to_thread(served.close)
                    LOG.info("model %s is unloaded: idle for %g s", name, patience)

    async def close(self) -> None:
        await stop(*self._loading.values())
        while self.loaded:
            _, served = self.loaded.popitem()
            await asyncio.to_thread(served.close)


async def in_daemon(work: Callable[[], T]) -> T:
    """As asyncio.to_thread, but the process need not wait for it to end: a large model loads for minutes."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(outcome: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if result.done() else outcome())

    def run() -> None:
        try:
            value = work()
        except BaseException as error:
            failure = error
            settle(lambda: result.set_exception(failure))
        else:
            settle(lambda: result.set_result(value))

    threading.Thread(target=run, name="bitnet-loader", daemon=True).start()
    return await result
