"""Ends a stream of text before the first stop string, and never shows a part of one."""

from __future__ import annotations

from collections.abc import Iterable

from bitnet.errors import ParameterError


class StopStrings:
    """Knuth-Morris-Pratt over every stop string at once: a few steps per character, however the text is cut.

    The stop string completed first wins; of those completed by the same character, the longest.
    stopped: whether one was found. matched: which.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._patterns = [_Pattern(stop) for stop in dict.fromkeys(stops)]
        self._held = ""
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        return self.matched is not None

    def push(self, text: str) -> str:
        """What of the text seen so far can be shown and has not been."""
        if self.stopped or not text:
            return ""
        if not self._patterns:
            return text
        text, start = self._held + text, len(self._held)
        for end in range(start, len(text)):
            found = [p.stop for p in self._patterns if p.advance(text[end])]
            if found:
                self.matched, self._held = max(found, key=len), ""
                return text[: end + 1 - len(self.matched)]
        shown = len(text) - max(pattern.matched for pattern in self._patterns)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The end of the text: what was held back is no stop string after all."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """How much of one stop string the text so far ends with."""

    def __init__(self, stop: str) -> None:
        if not isinstance(stop, str) or not stop:
            raise ParameterError(f"A stop string is {stop!r}; expected a text that is not empty.")
        self.stop = stop
        self.matched = 0
        self._fallback = _borders(stop)

    def advance(self, char: str) -> bool:
        while self.matched and self.stop[self.matched] != char:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self.stop[self.matched] == char
        return self.matched == len(self.stop)


def _borders(text: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(text)
    for i in range(1, len(text)):
        length = borders[i - 1]
        while length and text[i] != text[length]:
            length = borders[length - 1]
        borders[i] = length + (text[i] == text[length])
    return borders
