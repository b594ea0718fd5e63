"""Following a server: asked again and again, through its absences."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bitnet.errors import ScrapeError
from bitnet.monitor.history import Figures, History
from bitnet.monitor.reader import scrape


@dataclass(frozen=True, slots=True)
class State:
    """figures: the latest there are, also while the server is down. error: why there are no newer ones."""

    figures: Figures | None = None
    error: ScrapeError | None = None
    since: float | None = None  # time.time() of the first failure in a row
    restarted: float | None = None


class Watch:
    def __init__(self, url: str, key: str = "", model: str | None = None) -> None:
        self.url, self.history = url, History(model)
        self._key = key
        self.state = State()
        self.asked = -float("inf")  # time.monotonic() of the last time

    def ask(self, timeout: float = 5.0) -> State:
        """Ask once. What goes wrong is part of the state and is not raised."""
        self.asked = time.monotonic()
        try:
            figures = self.history.add(scrape(self.url, self._key, timeout))
            restarts = self.history.restarts
            self.state = State(figures, restarted=restarts[-1] if restarts else None)
        except ScrapeError as error:
            before = self.state
            self.state = State(before.figures, error, before.since or time.time(), before.restarted)
        return self.state

    def message(self) -> str:
        """One line on how the server is."""
        state = self.state
        if state.error is not None:
            since = time.strftime("%H:%M:%S", time.localtime(state.since))
            return f"{state.error.message} Since {since}; asking again."
        if state.restarted is not None and state.figures and state.figures.time - state.restarted < 60:
            return f"The server was started anew at {time.strftime('%H:%M:%S', time.localtime(state.restarted))}."
        return "live"
