"""Work for a client, for as long as there is someone to work for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from bitnet.server.context import server_of
from bitnet.server.lifecycle import Lifecycle

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def attended(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves (ClientGone) or the server ends (ApiError)."""
    return await attend(work, request.receive, server_of(request).lifecycle)


async def attend(work: Coroutine[Any, Any, T], receive: Receive, lifecycle: Lifecycle) -> T:
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(disconnect(receive))
    ended = lifecycle.ended
    try:
        futures: set[asyncio.Future[Any]] = {task, gone, ended}
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
    finally:
        await stop(task, gone)
    if gone.done() and not gone.cancelled():
        raise ClientGone
    raise lifecycle.refusal()


async def stop(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have cleaned up."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
