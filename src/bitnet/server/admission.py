"""Who may use a model now, who waits, and who is sent away with the time to come again."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from bitnet.server.errors import ApiError

SOONEST, LATEST = 1, 120  # seconds of Retry-After; clients obey no longer ones


class Admission:
    """First come, first served: `capacity` sequences at once; up to `queue_size` more wait, `patience` seconds each."""

    def __init__(self, capacity: int, queue_size: int, patience: float) -> None:
        self.capacity, self.queue_size, self.patience = capacity, queue_size, patience
        self.active = 0
        self.waiting = 0  # sequences
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._finished: deque[float] = deque(maxlen=64)  # when sequences ended

    async def enter(self, count: int) -> Place:
        """Wait for room for `count` sequences. A request for more than the capacity takes all of it.

        Raises ApiError 429 where too many wait already, and where the wait is too long.
        """
        wanted = min(count, self.capacity)
        if self._line or self.active + wanted > self.capacity:
            await self._wait(wanted)
        else:
            self.active += wanted
        return Place(self, wanted, count)

    async def _wait(self, wanted: int) -> None:
        if self.waiting + wanted > self.queue_size:
            raise self.refusal("The server is busy: its queue is full.", "queue_full")
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        entry = (wanted, turn)
        self._line.append(entry)
        self.waiting += wanted
        timer = loop.call_later(self.patience, self._expire, turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave(wanted)  # the turn came in the same moment
            else:
                self._line.remove(entry)
                self.waiting -= wanted
                self._admit()  # those behind may need less room
            raise
        finally:
            timer.cancel()

    def _expire(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            message = f"The server is busy: no turn came within {self.patience:g} seconds."
            turn.set_exception(self.refusal(message, "queue_timeout"))

    def leave(self, count: int) -> None:
        self.active -= count
        self._admit()

    def finished(self) -> None:
        """A sequence ended: from these the rate is known."""
        self._finished.append(time.monotonic())

    def _admit(self) -> None:
        while self._line and self.active + self._line[0][0] <= self.capacity:
            if self._line[0][1].done():
                return  # given up; it takes itself out of the line in a moment, and calls again
            wanted, turn = self._line.popleft()
            self.waiting -= wanted
            self.active += wanted
            turn.set_result(None)

    def refusal(self, message: str, code: str) -> ApiError:
        return ApiError(429, message, code=code, retry_after=self.retry_after())

    def retry_after(self) -> float:
        """Seconds until those who wait now have had their turn, as sequences have been ending lately."""
        if len(self._finished) < 2:
            return SOONEST * 5
        rate = len(self._finished) / max(1e-3, time.monotonic() - self._finished[0])
        return min(LATEST, max(SOONEST, (self.waiting + 1) / rate))


class Place:
    """Room for the sequences of one request, given back as they end."""

    def __init__(self, admission: Admission, room: int, sequences: int) -> None:
        self._admission, self._room, self._sequences = admission, room, sequences

    def finished(self) -> None:
        """One of the sequences ended."""
        self._admission.finished()
        self._sequences -= 1
        self._give_back(max(0, self._room - self._sequences))

    def close(self) -> None:
        self._give_back(self._room)

    def _give_back(self, count: int) -> None:
        self._room -= count
        if count:
            self._admission.leave(count)
