"""Requests to the application from within its process: the same road, without a port."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers

from bitnet.server.context import Server


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[Server]:
    """The application with its default model loaded; raises what that could not be loaded for."""
    server: Server = app.state.server
    async with app.router.lifespan_context(app):
        await server.registry.get()
        yield server


async def post(app: FastAPI, path: str, body: bytes) -> tuple[int, str, Any]:
    """The status, the request's id and the JSON of the answer."""
    head: dict[str, Any] = {}
    parts: list[bytes] = []
    sent = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if sent.is_set():
            await asyncio.Event().wait()  # this client does not leave
        sent.set()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            head.update(message)
        parts.append(message.get("body", b""))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"content-length", b"%d" % len(body))],
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    return head["status"], Headers(raw=head["headers"])["x-request-id"], json.loads(b"".join(parts))
