"""Loading, ready, draining, ended: what the server is up to, and whose work still runs."""

from __future__ import annotations

import asyncio
import time

from bitnet.server.errors import ApiError

LAST_WORDS = 2.0  # seconds for the errors to be sent to those whose work is ended


class Lifecycle:
    """in_flight: requests being answered."""

    def __init__(self) -> None:
        self.loading = True
        self.draining = False
        self.in_flight = 0
        self.started = time.time()
        self.failure: BaseException | None = None  # why the server cannot go on
        self._ended: asyncio.Future[None] | None = None

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done once what still runs must stop."""
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        return self._ended

    @property
    def status(self) -> str:
        return "draining" if self.draining else "loading" if self.loading else "ok"

    def refusal(self) -> ApiError:
        return ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=5)

    async def drain(self, patience: float) -> None:
        """Take no more work; give what runs `patience` seconds, then end it."""
        self.draining = True
        await self._quiet(patience)
        self.end()
        await self._quiet(LAST_WORDS)

    def end(self) -> None:
        """What still runs is over: its clients are told."""
        if not self.ended.done():
            self.ended.set_result(None)

    async def _quiet(self, patience: float) -> None:
        until = time.monotonic() + patience
        while self.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.02)
