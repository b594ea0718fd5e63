"""Meanings for the operations of base.py."""

from __future__ import annotations

from bitnet.backends.base import Ops
from bitnet.errors import ParameterError

BACKENDS = ("cpu", "reference")


def make(name: str = "cpu") -> Ops:
    """A backend by name; imported only now, since each may need something that is not installed."""
    if name == "cpu":
        from bitnet.backends.cpu import CPU

        return CPU()
    if name == "reference":
        from bitnet.backends.reference import Reference

        return Reference()
    raise ParameterError(f"There is no backend {name!r}.", f"Known: {', '.join(BACKENDS)}.")
