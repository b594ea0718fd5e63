"""JSON from strangers: bounded in size and depth, and strict about NaN and duplicate keys."""

from __future__ import annotations

import json
import re
from itertools import accumulate
from typing import Any

from bitnet.errors import FormatError

MAX_DEPTH = 64
_BRACKET_OR_STRING = re.compile(rb'[\[\]{}]|"(?:[^"\\]|\\.)*"', re.DOTALL)
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def parse_object(text: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `text`; `what` names the file in the errors."""
    if not text.strip():
        raise FormatError(f"{what} is empty; a JSON object was expected.")
    if _depth(text) > MAX_DEPTH:
        raise FormatError(f"{what} is nested more than {MAX_DEPTH} levels deep.")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} holds a JSON {type(value).__name__}; an object was expected.")
    return value


def _depth(text: bytes) -> int:
    return max(accumulate(_STEP.get(m.group(), 0) for m in _BRACKET_OR_STRING.finditer(text)), default=0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a JSON number")
