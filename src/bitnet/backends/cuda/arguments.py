"""Arguments of a kernel as the driver takes them: pointers to their values."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

CTYPES: dict[str, Any] = {"p": ctypes.c_void_p, "i": ctypes.c_int32, "l": ctypes.c_int64, "f": ctypes.c_float}
LETTERS = {"i32": "i", "i64": "l", "fp32": "f"}


def packed(types: str, values: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The array of pointers, and what has to live as long as it is used. types: as in device.Kernel."""
    if len(types) != len(values):
        raise ValueError(f"{len(values)} arguments for the parameters {types!r}.")
    kept = [CTYPES[kind](value) for kind, value in zip(types, values, strict=True)]
    return (ctypes.c_void_p * max(1, len(kept)))(*(ctypes.addressof(each) for each in kept)), kept


def letters(types: Sequence[str]) -> str:
    """Triton's names of types as letters."""
    return "".join("p" if kind[0] == "*" else LETTERS[kind.split(":")[0]] for kind in types)
