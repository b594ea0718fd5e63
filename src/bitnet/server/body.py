"""JSON from strangers: bounded in bytes, time and depth, and strict where Python's parser is lax."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope

from bitnet.server.context import server_of
from bitnet.server.errors import ApiError

MAX_DEPTH = 64
MAX_DIGITS = 64
LARGE = 1 << 16  # bytes; what is larger is parsed in a thread
_MARKS = re.compile(rb'[][{}"\\]')


class JsonRequest(Request):
    """A request whose body is JSON, whatever its Content-Type says: `curl -d` sends none of its own."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        super().__init__({**scope, "headers": [*headers, (b"content-type", b"application/json")]}, receive)

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            settings = server_of(self).settings
            try:
                with anyio.fail_after(settings.stall_timeout):
                    self._body = await self._read(settings.max_body)
            except TimeoutError:
                raise ApiError(408, f"The body did not come within {settings.stall_timeout:g} seconds.") from None
            if not self._body.strip():
                raise ApiError(400, "The body is empty; a JSON object was expected.")
        return self._body

    async def _read(self, most: int) -> bytes:
        announced = self.headers.get("content-length", "")
        parts, size = [], int(announced) if announced.isdecimal() else 0
        if size <= most:
            size = 0
            async for part in self.stream():
                parts.append(part)
                size += len(part)
                if size > most:
                    break
        if size > most:
            raise ApiError(413, f"The body has more than {most} bytes.", code="body_too_large")
        return b"".join(parts)

    async def json(self) -> Any:
        data = await self.body()
        return parse(data) if len(data) < LARGE else await asyncio.to_thread(parse, data)


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return strictly


def parse(data: bytes) -> dict[str, Any]:
    """Raises ApiError for what is not JSON (RFC 8259), or nested too deeply, or has numbers that no double holds."""
    if deeper_than(data, MAX_DEPTH):
        raise ApiError(400, f"The body is nested more than {MAX_DEPTH} levels deep.")
    try:
        value = json.loads(data.decode(), parse_constant=refuse, parse_int=integer, parse_float=real)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is JSON, but no object.")
    return value


def deeper_than(data: bytes, most: int) -> bool:
    if data.count(b"[") + data.count(b"{") <= most:
        return False
    depth = skip = 0
    quoted = False
    for mark in _MARKS.finditer(data):
        char = mark.group()
        if mark.start() < skip:
            continue
        if char == b"\\":
            skip = mark.start() + 2
        elif char == b'"':
            quoted = not quoted
        elif not quoted:
            depth += 1 if char in b"[{" else -1
            if depth > most:
                return True
    return False


def refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")


def integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits")
    return int(digits)


def real(digits: str) -> float:
    """1.0 and 1e2 are integers too, as JSON Schema has it."""
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.20} is too large a number")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value
