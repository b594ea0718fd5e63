"""Calls of tools in what a model says, found as the text comes.

Models are taught to write a call as JSON with a name and arguments: between tags, as Hermes and Qwen do,

    <tool_call>
    {"name": "weather", "arguments": {"city": "Oslo"}}
    </tool_call>

or bare, at the beginning of the answer, as Llama 3 does (there `arguments` is `parameters`; several are separated by
semicolons or stand in a list). What is neither, or names no tool that there is, stays text.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Generator
from dataclasses import dataclass
from typing import Literal

from bitnet.server.call_object import CallObject
from bitnet.server.reasoning import overlap

BEGIN, END = "<tool_call>", "</tool_call>"
PYTHON_TAG = "<|python_tag|>"  # Llama 3.1 may put it before a call
SPACE = re.compile(r"\s*")
BEFORE = re.compile(rf"\s*(?:{re.escape(PYTHON_TAG)})?\s*\[?\s*")  # a bare call
BETWEEN = re.compile(r"[\s,;\]]*")  # bare calls, and after the last

Syntax = Literal["tags", "bare"]


@dataclass(frozen=True, slots=True)
class Call:
    """The beginning of a call, the `index`-th of its answer."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Found = str | Call | Arguments  # str: text that is part of no call
Step = Generator[None, None, None]  # reads on each time it is resumed
Answered = Generator[None, None, bool]


class CallParser:
    """names: of the tools that can be called. parallel: whether several may be; further ones are dropped.

    Whitespace around calls is no text.
    """

    def __init__(self, syntax: Syntax, names: Collection[str], parallel: bool = True) -> None:
        self._names, self._parallel = names, parallel
        self._held, self._over = "", False
        self._found: list[Found] = []
        self._steps = self._tagged() if syntax == "tags" else self._bare()
        self.count = 0
        next(self._steps)

    def push(self, text: str) -> list[Found]:
        if text:
            self._held += text
            next(self._steps)
        return self._given()

    def flush(self) -> list[Found]:
        """The end of the text: what has begun like a call and is none is text."""
        self._over = True
        next(self._steps, None)
        return self._given()

    def _given(self) -> list[Found]:
        found, self._found = self._found, []
        return found

    def _tagged(self) -> Step:
        while True:
            start = self._held.find(BEGIN)
            if start >= 0:
                self._show(self._take(len(self._held[:start].rstrip())))
                opening = self._take(self._held.find(BEGIN) + len(BEGIN))
                opening += yield from self._skip(SPACE)
                if (yield from self._call(opening)):
                    yield from self._close()
                continue
            self._show(self._take(len(self._held[: len(self._held) - overlap(self._held, BEGIN)].rstrip())))
            if not (yield from self._more()):
                break
        if not self.count or not self._held.isspace():
            self._show(self._held)

    def _close(self) -> Step:
        yield from self._skip(SPACE)
        while len(self._held) < len(END) and END.startswith(self._held) and (yield from self._more()):
            pass
        if self._held.startswith(END) or (self._over and END.startswith(self._held)):
            self._take(len(END))
        yield from self._skip(SPACE)

    def _bare(self) -> Step:
        while True:
            before = length(BEFORE, self._held)
            rest = self._held[before:]
            if (rest and not PYTHON_TAG.startswith(rest)) or not (yield from self._more()):
                break
        opening = self._take(before)
        while (yield from self._call(opening)):
            yield from self._skip(BETWEEN)
            opening = ""
        while True:
            self._show(self._take(len(self._held)))
            if not (yield from self._more()):
                break

    def _call(self, opening: str) -> Answered:
        """Whether a call comes next; else that, and what stands before it, is text."""
        read, index, sent = CallObject(self._names), None, 0
        while True:
            self._held = read.push(self._held)
            arguments = read.arguments
            if arguments is not None:
                if index is None:
                    index = self._announce(read.name)
                if self._parallel or not index:
                    self._found += [Arguments(index, arguments[sent:])] if len(arguments) > sent else []
                sent = len(arguments)
            if read.done or read.failed or not (yield from self._more()):
                break
        if index is None:
            self._show(opening + read.text)
        return index is not None

    def _announce(self, name: str) -> int:
        index, self.count = self.count, self.count + 1
        if self._parallel or not index:
            self._found.append(Call(index, f"call_{secrets.token_hex(12)}", name))
        return index

    def _skip(self, pattern: re.Pattern[str]) -> Generator[None, None, str]:
        """Takes what matches, up to a character that does not."""
        while True:
            end = length(pattern, self._held)
            if end < len(self._held) or not (yield from self._more()):
                return self._take(end)

    def _more(self) -> Answered:
        """Wait for more of the text; whether there is."""
        size = len(self._held)
        while len(self._held) == size and not self._over:
            yield
        return len(self._held) > size

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _show(self, text: str) -> None:
        if text:
            self._found.append(text)


def length(pattern: re.Pattern[str], text: str) -> int:
    """Of what matches at the beginning."""
    found = pattern.match(text)
    return found.end() if found else 0
