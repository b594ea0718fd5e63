"""The settings that change how fast a model runs, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bitnet.backends.packing import asked
from bitnet.errors import ParameterError
from bitnet.models import HEADS


@dataclass(frozen=True, slots=True)
class Options:
    """threads: 0 takes the machine's cores. weights, kernel: how ternary weights are kept and multiplied (packing.py).

    head: one of HEADS. chunk: tokens in a step at most.
    """

    threads: int = 0
    weights: str = "auto"
    kernel: str = "auto"
    head: str = "auto"
    chunk: int = 512

    def __post_init__(self) -> None:
        for name, low, high in (("threads", 0, 1024), ("chunk", 1, 1 << 28)):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ParameterError(f"{name} is {value!r}; expected {low} to {high}.")
        asked(self.weights, self.kernel)
        if self.head not in HEADS:
            raise ParameterError(f"head is {self.head!r}; expected one of {', '.join(HEADS)}.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        unknown = given.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ParameterError(f"There is no option {', '.join(sorted(unknown))}.")
        return cls(**given)

    def changed(self) -> dict[str, Any]:
        """Those that differ from the defaults."""
        defaults = asdict(Options())
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}

    @property
    def packing(self) -> str:
        return asked(self.weights, self.kernel)

    def under(self, given: Mapping[str, Any]) -> Options:
        """`given` where it decides ("auto" and 0 threads do not), these elsewhere."""
        names = [field.name for field in fields(self) if given.get(field.name, "auto") not in ("auto", 0)]
        # One of the two decides about both: the other may not go with it.
        free = {"weights": "auto", "kernel": "auto"} if {"weights", "kernel"} & {*names} else {}
        return replace(self, **{**free, **{name: given[name] for name in names}})
