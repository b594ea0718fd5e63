"""Answers that come bit by bit: events, pings while nothing comes, errors, and an end when nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bitnet.server.attend import ClientGone, attend
from bitnet.server.context import Context
from bitnet.server.encoding import to_json
from bitnet.server.errors import ApiError, as_api_error, error_body

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def event(data: Any, name: str | None = None) -> bytes:
    """https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + to_json(data) + b"\n\n"


class EventStream(Response):
    """chunks: the body. close: ends what makes the chunks, however this ends. path: decides the shape of errors."""

    media_type = "text/event-stream"
    ping: bytes | None = PING

    def __init__(self, context: Context, path: str, chunks: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        self.context, self.path, self.chunks, self.close = context, path, chunks, close
        self.status_code, self.background = 200, None
        self._silent, self._turn = True, asyncio.Lock()
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lifecycle, patience = self.context.server.lifecycle, self.context.server.settings.stall_timeout

        async def write(data: bytes, more: bool = True) -> None:
            """Waits while the client reads more slowly than we write; a client that has stopped reading is gone."""
            async with self._turn:
                self._silent = False
                message = {"type": "http.response.body", "body": data, "more_body": more}
                with anyio.move_on_after(patience) as waiting:
                    await send(message)
                if waiting.cancelled_caught:
                    scope.get("bitnet.abort", nothing)()  # or the connection would wait on
                    raise ClientGone

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pings = asyncio.ensure_future(self._ping(write))
        try:
            await attend(self._write_all(write), receive, lifecycle)
        except ApiError as error:  # the server is being stopped
            await write(self.failure(error), False)
        finally:
            pings.cancel()
            self.close()

    async def _write_all(self, write: Callable[..., Any]) -> None:
        try:
            async for chunk in self.chunks:
                await write(chunk)
        except Exception as error:
            if isinstance(error, ClientGone):
                raise
            await write(self.failure(as_api_error(error, self.context.id)))
        await write(b"", False)

    async def _ping(self, write: Callable[..., Any]) -> None:
        while self.ping is not None:
            self._silent = True
            await asyncio.sleep(self.context.server.settings.ping_interval)
            if self._silent:
                await write(self.ping)

    def failure(self, error: ApiError) -> bytes:
        """An error in the midst of the stream."""
        return event(error_body(error, self.path), "error" if self.path.startswith("/v1/messages") else None)


def nothing() -> None:
    pass
