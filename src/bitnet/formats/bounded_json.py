"""JSON from strangers: bounded in size and depth, and strict about UTF-8, NaN and duplicate keys.

Everything here takes time and memory in proportion to the text.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np

from bitnet.errors import FormatError

MAX_DEPTH = 64
MAX_MARKS = 1 << 20  # quotes, commas, opening brackets and backslashes; a tensor of a safetensors header has 20
_ESCAPE, _STRING = re.compile(rb"\\.", re.DOTALL), re.compile(rb'"[^"]*"?')
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1


def parse_object(text: bytes, what: str, max_marks: int = MAX_MARKS) -> dict[str, Any]:
    """The JSON object in `text`; `what` names the file in the errors.

    max_marks: how many values there may be, about; an object of Python's takes up to 30 times the bytes of its text.
    """
    if not text.strip():
        raise FormatError(f"{what} is empty; a JSON object was expected.")
    if sum(map(text.count, (b'"', b",", b"[", b"{", b"\\"))) > max_marks:
        raise FormatError(f"{what} has more than {max_marks:,} quotes, commas, brackets and backslashes.")
    if _depth(text) > MAX_DEPTH:
        raise FormatError(f"{what} is nested more than {MAX_DEPTH} levels deep.")
    try:
        value = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
        if b"\\ud" in text.lower():  # perhaps half of a surrogate pair, which can be neither printed nor written
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} holds a JSON {type(value).__name__}; an object was expected.")
    return value


def _depth(text: bytes) -> int:
    brackets = _STRING.sub(b"", _ESCAPE.sub(b"", text)).translate(None, _NO_BRACKETS)
    steps = _STEPS[np.frombuffer(brackets, np.uint8)]
    return int(np.cumsum(steps, dtype=np.int32).max(initial=0))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")
