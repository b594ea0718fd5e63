"""The outermost layer: an id for every request, a line in the log, and an answer whatever happens."""

from __future__ import annotations

import logging
import re
import time
from contextlib import ExitStack
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitnet.server.attend import ClientGone
from bitnet.server.context import Context, Server
from bitnet.server.errors import as_api_error, error_response, quoted
from bitnet.server.registry import HOLDS

ACCESS = logging.getLogger("bitnet.access")
LOG = logging.getLogger("bitnet.server")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
GONE = 499  # as nginx writes it; nobody reads it


class Gate:
    """Refuses work while the server drains, and counts what is in flight."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        context = scope["bitnet.context"] = Context(self.server)
        asked = Headers(scope=scope).get("x-request-id", "")
        if ID.fullmatch(asked):
            context.id = asked
        lifecycle, working = self.server.lifecycle, scope["method"] == "POST"
        answer = Answer(send, context)
        lifecycle.in_flight += working
        holds = ExitStack()
        held = HOLDS.set(holds)
        try:
            if working and lifecycle.draining:
                raise lifecycle.refusal()
            await self.app(scope, receive, answer.send)
        except ClientGone:
            answer.status = GONE
        except Exception as error:
            if answer.status:  # too late for another answer: the connection breaks off
                raise
            told = as_api_error(error, context.id)
            if told.status_code >= 500 and told.code == "internal_error":
                LOG.exception("request %s failed", context.id)
            await error_response(told, scope["path"])(scope, receive, answer.send)
        finally:
            HOLDS.reset(held)
            holds.close()
            lifecycle.in_flight -= working
            answer.log(scope)


class Answer:
    """Adds the request's id to the headers, and remembers the status."""

    def __init__(self, send: Send, context: Context) -> None:
        self._send, self._context = send, context
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._context.id
            headers["X-Content-Type-Options"] = "nosniff"
            if self._context.origin is not None:
                headers["Access-Control-Allow-Origin"] = self._context.origin
                headers["Access-Control-Expose-Headers"] = "X-Request-Id, Retry-After"
                headers.add_vary_header("Origin")
        await self._send(message)

    def log(self, scope: Scope) -> None:
        """One line; nothing of what was asked but the path, and nothing in it that a terminal would obey."""
        client: Any = scope.get("client") or ("-", 0)
        elapsed = 1000 * (time.perf_counter() - self._context.arrived)
        notes = " ".join(self._context.notes)
        path = quoted(scope["path"])
        ACCESS.info(
            "%s %s %s %s %.1f ms %s %s",
            client[0], scope["method"], path, self.status or GONE, elapsed, self._context.id, notes,
        )  # fmt: skip
