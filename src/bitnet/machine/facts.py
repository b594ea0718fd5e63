"""Everything that can be found out about the machine without running anything on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bitnet.machine.cgroup import Limits, limits
from bitnet.machine.files import ROOT
from bitnet.machine.memory import Memory, memory
from bitnet.machine.processor import Processor, processor
from bitnet.machine.surroundings import Surroundings, Temperature, surroundings, temperatures


@dataclass(frozen=True, slots=True)
class Machine:
    processor: Processor
    limits: Limits
    memory: Memory
    surroundings: Surroundings
    temperatures: tuple[Temperature, ...]

    @property
    def available(self) -> int | None:
        """Bytes of memory that can still be had."""
        free = (self.memory.available, self.limits.memory_free)
        return min((each for each in free if each is not None), default=None)


def look(root: Path = ROOT, allowed: Iterable[int] | None = None) -> Machine:
    """root: where /proc and /sys are. allowed: CPUs in place of those that the system allows this process."""
    return Machine(processor(root, allowed), limits(root), memory(root), surroundings(root), temperatures(root))
