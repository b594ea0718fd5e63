"""uvicorn as we run it: patience with slow clients that ends, signals that drain, errors that are explained."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from bitnet.errors import BitNetError, ParameterError
from bitnet.server.context import Server
from bitnet.server.settings import Settings

HEADER_TIMEOUT = 20.0  # seconds in which the head of a request must have come
KEEP_ALIVE = 30  # seconds that an idle connection stays
LAST_RESORT = 3.0  # seconds after a second signal until the process is ended whatever it does
BACKLOG = 2048


class Protocol(H11Protocol):
    """Closes connections whose request does not come, and those whose answer is not taken.

    Otherwise a client that sends its headers byte by byte, or reads nothing, would hold a connection for ever.
    """

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        inner: Any = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["bitnet.abort"] = transport.abort
            await inner(scope, receive, send)

        self.app = app
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answering:
            self._forget_late()
        elif self._late is None and not self.transport.is_closing():
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_late()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(HEADER_TIMEOUT, self.transport.abort)  # if the last answer is not taken by then

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_request(self) -> None:
        self._late = self.loop.call_later(HEADER_TIMEOUT, self._give_up)

    def _give_up(self) -> None:
        if not self._answering:
            self.transport.abort()

    def _forget_late(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


class HttpServer(uvicorn.Server):
    """The first SIGTERM or SIGINT drains, a second one ends at once."""

    def __init__(self, config: uvicorn.Config, server: Server, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._server, self._announce = server, announce
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn would send itself the signal once more, and so not end with 0."""
        if threading.current_thread() is not threading.main_thread():  # only that one hears of signals
            yield
            return
        handlers = {each: signal.signal(each, self._signalled) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._announce()

    def _signalled(self, number: int, frame: Any) -> None:
        self.stop()

    def stop(self) -> None:
        """As a signal does; from any thread."""
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())
            return
        self._server.lifecycle.end()
        self.should_exit = self.force_exit = True
        if threading.current_thread() is threading.main_thread():
            self._loop.call_later(LAST_RESORT, os._exit, 1)

    async def _drain(self) -> None:
        await self._server.lifecycle.drain(self._server.settings.drain_timeout)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave the models as they are
            await self.lifespan.shutdown()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._server.lifecycle.failure is not None


def run(app: FastAPI, settings: Settings, say: Callable[[str], None]) -> None:
    """Serve until a signal comes; raises what the default model could not be loaded for.

    say: is told the URL once the server listens.
    """
    bound = bind(settings.host, settings.port)
    raise_file_limit()
    make_server(app, lambda: say(url(settings.host, bound))).run([bound])
    failure = app.state.server.lifecycle.failure
    if failure is not None:
        raise failure


def make_server(app: FastAPI, announce: Callable[[], None]) -> HttpServer:
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=1,
        backlog=BACKLOG,
        lifespan="on",
    )
    return HttpServer(config, app.state.server, announce)


def bind(host: str, port: int) -> socket.socket:
    """Raises ParameterError or BitNetError, with what to do."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ParameterError(f"There is no address {host!r}: {error.strerror}.", "Try --host 127.0.0.1.") from None
    # asyncio switches Nagle's algorithm off only where the protocol is named; with it, every body waits 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            hint = "Stop the program that listens there, or take another: --port 0 finds a free one."
            raise BitNetError(f"Port {port} of {host} is in use.", hint) from None
        raise BitNetError(f"Port {port} of {host} cannot be listened on: {error.strerror}.", "See --port.") from None
    bound.setblocking(False)
    return bound


def url(host: str, bound: socket.socket) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"


def raise_file_limit() -> None:
    """A connection is an open file, and the usual limit is low."""
    try:
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ImportError, OSError, ValueError):
        pass
