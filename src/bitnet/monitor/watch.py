"""Following a server: asked again and again, through its absences."""

from __future__ import annotations

import time
from dataclasses import dataclass

from bitnet.errors import ScrapeError
from bitnet.monitor.history import Figures, History
from bitnet.monitor.reader import scrape

NEWS = 60.0  # seconds for which a restart is worth a line


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a server at one moment; it never changes, so that a thread may draw it while another asks.

    figures: oldest first; they stay while the server is down. error: why there are no newer ones. since: the
    time.time() of the first failure in a row.
    """

    figures: tuple[Figures, ...] = ()
    restarts: tuple[float, ...] = ()
    error: ScrapeError | None = None
    since: float | None = None

    @property
    def now(self) -> Figures | None:
        return self.figures[-1] if self.figures else None

    @property
    def restarted(self) -> float | None:
        """When it was seen to have been started anew, where that is news."""
        recent = self.now and self.restarts and self.now.time - self.restarts[-1] < NEWS
        return self.restarts[-1] if recent else None

    @property
    def message(self) -> str:
        """One line on how the server is."""
        if self.error is not None:
            return f"No figures since {clock(self.since)}, asking again. {self.error.message}"
        if self.restarted is not None:
            return f"The server was started anew at {clock(self.restarted)}."
        return "live" if self.figures else "asking"


class Watch:
    """asked: the time.monotonic() of the last time."""

    def __init__(self, url: str, key: str = "", model: str | None = None) -> None:
        self.url, self.state, self.asked = url, State(), -float("inf")
        self._key, self._history = key, History(model)

    def ask(self, timeout: float = 5.0) -> State:
        """Ask once. What goes wrong is part of the state and is not raised."""
        self.asked = time.monotonic()
        before, history = self.state, self._history
        try:
            history.add(scrape(self.url, self._key, timeout))
            self.state = State(tuple(history.figures), tuple(history.restarts))
        except ScrapeError as error:
            self.state = State(before.figures, before.restarts, error, before.since or time.time())
        return self.state


def clock(moment: float | None) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
