"""Typed look-ups in what a file says of a model: nothing is believed before it is checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnet.errors import FormatError

LIMITS = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 12,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 28,
}


class Reader:
    """Typed look-ups in a checkpoint's metadata, or in an object within it."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        """prefix: what stands before every key in the file."""
        self.path, self.values, self.prefix = path, values, prefix

    def within(self, key: str) -> Reader:
        """The object `key`, empty where there is none."""
        found = self.values.get(self.prefix + key) or {}
        if not isinstance(found, Mapping):
            raise self._wrong(key, found, "an object")
        return Reader(self.path, {f"{key}.{inner}": value for inner, value in found.items()}, f"{key}.")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, value, "an integer")
        return value

    def size(self, name: str, key: str = "", default: int | None = None) -> int:
        """The integer `key`, within the bounds of our hyper-parameter `name`, whose name it has unless one is given."""
        value = self.integer(key or name, default)
        if not 0 < value <= LIMITS[name]:
            raise FormatError(f"{self.path}: {name} is {value}; expected 1 to {LIMITS[name]}.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
            raise self._wrong(key, value, "a number")
        return float(value)

    def text(self, key: str, default: str) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(self.prefix + key)
        value = default if value is None else value
        if value is None:
            raise FormatError(f"{self.path}: {self.prefix}{key} is missing.")
        return value

    def _wrong(self, key: str, value: Any, expected: str) -> FormatError:
        return FormatError(f"{self.path}: {self.prefix}{key} is {value!r:.100}; expected {expected}.")
