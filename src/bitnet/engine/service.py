"""An engine in a thread of its own, with asyncio at its door.

The event loop never waits for the engine: what it wants done is put into an inbox, which the thread empties between two
steps, and what a step gave comes back in one call of the loop.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import weakref
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

from bitnet.engine.llm import LLM, Output
from bitnet.engine.pace import Pace
from bitnet.engine.sequence import Sequence, Status
from bitnet.errors import BitNetError, ResourceError

Result = TypeVar("Result")
News = tuple["Ticket", "Output | None"]  # None: that was all


class Service:
    """Answers many requests at once, from any number of event loops."""

    def __init__(self, llm: LLM) -> None:
        self._worker = Worker(llm)
        self._close = weakref.finalize(self, Worker.close, self._worker)  # also at the interpreter's end

    def submit(self, sequence: Sequence) -> Ticket:
        """Queue what `LLM.prepare` made; call it from the event loop that will read the ticket. Never blocks.

        BitNetError where the service is closed.
        """
        ticket = Ticket(self, sequence, asyncio.get_running_loop())
        self._worker.enter(ticket)
        return ticket

    def abort(self, ticket: Ticket) -> None:
        self._worker.leave(ticket)

    def run_alone(self, function: Callable[[], Result]) -> Awaitable[Result]:
        """The result of `function`, called in the engine's thread between two steps: others wait as long as it takes.

        Call it from an event loop.
        """
        return asyncio.wrap_future(self._worker.call(function))

    @property
    def running(self) -> int:
        return len(self._worker.llm.scheduler.running)

    @property
    def waiting(self) -> int:
        """Requests that are queued, at the door or in the engine."""
        return max(0, len(self._worker.tickets) - self.running)

    def close(self) -> None:
        """End every request with "abort", and the thread after the step it is in. Waits for that."""
        self._close()


class Ticket:
    """One request: `async for output in ticket` gives its outputs as they come, then raises its error if it has one.

    Leaving the loop early ends the request, and so does the end of the task that is in it.
    """

    def __init__(self, service: Service, sequence: Sequence, loop: asyncio.AbstractEventLoop) -> None:
        self.sequence, self.loop = sequence, loop
        self._service = service  # which must not end before its tickets
        self._outputs: deque[Output] = deque()
        self._news, self._ended = asyncio.Event(), False

    def abort(self) -> None:
        """End the request, soon; what has come until then can still be read."""
        if not self._ended:
            self._service.abort(self)

    def receive(self, output: Output | None) -> None:
        """In the event loop."""
        if output is None:
            self._ended = True
        else:
            self._outputs.append(output)
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[Output]:
        try:
            while self._outputs or not self._ended:
                while self._outputs:
                    yield self._outputs.popleft()
                if not self._ended:
                    self._news.clear()
                    await self._news.wait()
        finally:
            self.abort()
        if self.sequence.error is not None:
            raise self.sequence.error


class Worker:
    """The engine's side. tickets: all that have not ended, by sequence; some may still be in the inbox."""

    def __init__(self, llm: LLM) -> None:
        self.llm, self.pace = llm, Pace(llm.scheduler.chunk)
        self.tickets: dict[Sequence, Ticket] = {}
        self.closed: BitNetError | None = None
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._door = threading.Lock()  # held for a moment: nothing comes in after the end
        self._thread = threading.Thread(target=self._work, name="bitnet-engine", daemon=True)
        self._thread.start()

    # From any thread.

    def enter(self, ticket: Ticket) -> None:
        with self._door:
            self._check_open()
            self.tickets[ticket.sequence] = ticket
            self._inbox.put(lambda: self._add(ticket))

    def leave(self, ticket: Ticket) -> None:
        with self._door:
            if self.closed is None:
                self._inbox.put(lambda: self._abort(ticket))

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        with self._door:
            self._check_open()
            self._inbox.put(lambda: self._answer(future, function))
        return future

    def close(self) -> None:
        self._shut(BitNetError("The model's service is closed."))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check_open(self) -> None:
        if self.closed is not None:
            raise self.closed.with_traceback(None)  # or each of many would add to it

    def _shut(self, error: BitNetError) -> None:
        with self._door:
            self.closed = self.closed or error
            self._inbox.put(lambda: None)

    # In the engine's thread.

    def _work(self) -> None:
        try:
            while self.closed is None:
                self._take_in()
                self._step()
        except Exception as error:  # of the mending itself
            self._shut(failure(error))
            for sequence in list(self.tickets):
                sequence.error = self.closed
                sequence.finish("error")
        finally:
            self._end_all()

    def _take_in(self) -> None:
        """Do what came in; wait for it where there is nothing else to do."""
        try:
            while self.closed is None:
                self._inbox.get(block=not self.tickets)()
        except queue.Empty:
            pass

    def _step(self) -> None:
        try:
            outputs, finished = self.llm.advance(list(self.tickets), self.pace)
        except Exception as error:  # of the engine, and so of all that are in it
            self.llm.reset(failure(error))
            return
        news: list[News] = [(self.tickets[output.sequence], output) for output in outputs]
        self._tell([*news, *((self.tickets.pop(sequence), None) for sequence in finished)])

    def _tell(self, news: list[News]) -> None:
        by_loop = defaultdict[asyncio.AbstractEventLoop, list[News]](list)
        for ticket, output in news:
            by_loop[ticket.loop].append((ticket, output))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(hand_out, items)
            except RuntimeError:  # the loop is closed, and nobody will ever read
                for ticket, _ in items:
                    self._abort(ticket)

    def _add(self, ticket: Ticket) -> None:
        if ticket.sequence.status is Status.WAITING:
            self.llm.add(ticket.sequence)

    def _abort(self, ticket: Ticket) -> None:
        self.llm.abort(ticket.sequence)
        if self.tickets.pop(ticket.sequence, None) is not None:
            self._tell([*((ticket, output) for output in ticket.sequence.take()), (ticket, None)])

    def _answer(self, future: Future[Result], function: Callable[[], Result]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            self._check_open()
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    def _end_all(self) -> None:
        """Nobody is left waiting."""
        while not self._inbox.empty():
            with suppress(Exception):
                self._inbox.get()()
        for ticket in list(self.tickets.values()):
            self._abort(ticket)


def hand_out(news: list[News]) -> None:
    for ticket, output in news:
        ticket.receive(output)


def failure(error: Exception) -> BitNetError:
    """What a request is told when the engine itself failed."""
    if isinstance(error, BitNetError):
        return error
    if isinstance(error, MemoryError):
        told: BitNetError = ResourceError(
            "The engine ran out of memory.", "Ask for less at once, or a shorter context."
        )
    else:
        told = BitNetError(f"The engine failed: {type(error).__name__}: {error}", "Please report this.")
    told.__cause__ = error
    return told
