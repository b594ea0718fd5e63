"""Calls made by a few threads, their results in order: reading, encoding and writing overlap, and little waits."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
MOST = 8  # threads; each holds a block and what is computed from it
WAITING = 2  # of them, for a disk, while the processors are busy


def in_order(calls: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The result of each call. NumPy lets go of Python's lock, so the calls run side by side; at most two for each
    thread are begun and not yet taken. What a call raises is raised here, and the calls behind it are not made.
    """
    threads = min(MOST, processors() + WAITING)
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for call in calls:
                if len(pending) == 2 * threads:
                    yield pending.popleft().result()
                pending.append(pool.submit(call))
            while pending:
                yield pending.popleft().result()
        finally:
            for each in pending:
                each.cancel()


def processors() -> int:
    """Those that this process may use, where the system says."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1
