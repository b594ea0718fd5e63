"""Thoughts apart from the answer: what stands between <think> and </think> at the beginning of a text."""

from __future__ import annotations

from typing import Literal

from bitnet.tokenizer import Tokenizer

BEGIN, END = "<think>", "</think>"


def begun(prompt: list[int], tokenizer: Tokenizer) -> bool:
    """Whether the template has opened the thoughts at the end of the prompt."""
    return tokenizer.decode(prompt[-16:], skip_special=False).rstrip().endswith(BEGIN)


def overlap(text: str, tag: str) -> int:
    """How many characters at the end of the text may be the beginning of the tag."""
    most = min(len(text), len(tag) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(tag[:n])), 0)


class Thoughts:
    """Splits a text that comes in pieces; whitespace around the thoughts belongs to neither part.

    open: the prompt has begun the thoughts.
    """

    def __init__(self, open: bool = False) -> None:
        self._stage: Literal["before", "inside", "after", "text"] = "inside" if open else "before"
        self._held = ""
        self._fresh = True  # no thought has been shown

    def push(self, text: str) -> tuple[str, str]:
        """The next of the thoughts, and of the text."""
        self._held += text
        if self._stage == "before":
            self._begin()
        thought = self._think() if self._stage == "inside" else ""
        if self._stage == "after":
            self._held = self._held.lstrip()
            self._stage = "text" if self._held else "after"
        return thought, self._take(len(self._held)) if self._stage == "text" else ""

    def flush(self) -> tuple[str, str]:
        """The end of the text: what was held back is no tag after all."""
        rest = self._take(len(self._held))
        return (rest, "") if self._stage == "inside" else ("", rest)

    def _begin(self) -> None:
        start = self._held.lstrip()
        if start.startswith(BEGIN):
            self._stage, self._held = "inside", start[len(BEGIN) :]
        elif not BEGIN.startswith(start):
            self._stage = "text"

    def _think(self) -> str:
        if self._fresh:
            self._held = self._held.lstrip()
        end = self._held.find(END)
        if end >= 0:
            thought = self._take(end).rstrip()
            self._take(len(END))
            self._stage = "after"
        else:
            thought = self._take(len(self._held[: len(self._held) - overlap(self._held, END)].rstrip()))
        self._fresh = self._fresh and not thought
        return thought

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken
