"""One JSON object that comes character by character, and the members of it that make a call of a tool."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

NAME = "name"
ARGUMENTS = ("arguments", "parameters")
VALUES = '"{[-0123456789tfn'  # how a JSON value begins


class CallObject:
    """names: of the tools that there are.

    text: what has been read of it. name: of the tool, once it is known. done: it is complete. failed: it is not as JSON
    should be, or names no tool.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self.text, self.name, self.done, self.failed = "", "", False, False
        self._depth = 0
        self._quoted = self._escaped = False
        self._begun = False  # with arguments that can be shown as they come
        self._key: str | None = None
        self._start: int | None = None  # of the key or the value that is being read
        self._span: tuple[int, int | None] | None = None  # of the arguments

    @property
    def arguments(self) -> str | None:
        """Their JSON text as far as it has come, once it is certain that this is a call; till then None."""
        if self._begun and self._span is not None:
            return self.text[slice(*self._span)]
        if not self.done or self.failed or not self.name:
            return None
        return "{}" if self._span is None else inner(decoded(self.text[slice(*self._span)]))

    def push(self, text: str) -> str:
        """Reads up to the end of the object, or to where it goes wrong; what follows is given back."""
        begin = len(self.text)
        self.text += text
        for i in range(begin, len(self.text)):
            self._read(i, self.text[i])
            if self.done or self.failed:
                end = i + self.done
                rest, self.text = self.text[end:], self.text[:end]
                self.failed = self.failed or decoded(self.text) is None
                return rest
        return ""

    def _read(self, i: int, char: str) -> None:
        if self._quoted:
            self._quoted = char != '"' or self._escaped
            self._escaped = char == "\\" and not self._escaped
            return
        self._quoted = char == '"'
        if self._depth == 1:
            self._read_member(i, char)
        elif not self._depth and char != "{":
            self.failed = True
        if char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth == 1 and self._key in ARGUMENTS and self._span is not None:
                self._span = self._span[0], i + 1

    def _read_member(self, i: int, char: str) -> None:
        """A character of the object itself, outside its strings."""
        if char.isspace():
            return
        if self._start is None:
            if char == "}" and self._key is None:
                self.done = True
            elif char not in ('"' if self._key is None else VALUES):
                self.failed = True
            else:
                self._start = i
                if self._key in ARGUMENTS and self._span is None:
                    self._span = i, None
                    self._begun = bool(self.name) and char == "{"
        elif self._key is None and char == ":":
            self._key, self._start = self._value(i), None
            self.failed = not isinstance(self._key, str)
        elif self._key is not None and char in ",}":
            self._end_member(i)
            self._key = self._start = None
            self.done = char == "}" and not self.failed

    def _end_member(self, end: int) -> None:
        if self._key == NAME and not self.name:
            name = self._value(end)
            self.failed = not isinstance(name, str) or name not in self._names
            self.name = "" if self.failed else str(name)
            self._begun = not self.failed and self._span is not None and self.text[self._span[0]] == "{"
        elif self._key in ARGUMENTS and self._span is not None and self._span[1] is None:
            self._span = self._span[0], end

    def _value(self, end: int) -> Any:
        """The key or value that ends here; None where it is broken."""
        return decoded(self.text[self._start : end])


def inner(value: Any) -> str | None:
    """Arguments that are left out, or a text which holds the object."""
    if value is None:
        return "{}"
    return value if isinstance(value, str) and isinstance(decoded(value), dict) else None


def decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def as_object(arguments: str) -> dict[str, Any]:
    """For clients that take no text; of arguments that were cut short nothing can be had."""
    value = decoded(arguments)
    return value if isinstance(value, dict) else {}
