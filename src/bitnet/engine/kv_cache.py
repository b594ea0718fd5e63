"""Which blocks of the paged cache are free. The blocks themselves belong to the backend."""

from __future__ import annotations

from bitnet.backends.base import BLOCK_SIZE
from bitnet.engine.sequence import Sequence


class BlockPool:
    """Blocks 0 to count - 1; the most recently freed is given out first, for it is warm."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def grow(self, sequence: Sequence, length: int) -> bool:
        """Give `sequence` the blocks that `length` positions need; False, and nothing given, when there are too few."""
        needed = sequence.blocks_for(length)
        if needed > len(self._free):
            return False
        sequence.blocks.extend(self._free.pop() for _ in range(needed))
        return True

    def trim(self, sequence: Sequence, length: int) -> None:
        """Take back the blocks that `length` positions do not need."""
        kept = -(-length // BLOCK_SIZE)
        self._free.extend(reversed(sequence.blocks[kept:]))
        del sequence.blocks[kept:]

    def release(self, sequence: Sequence) -> None:
        self.trim(sequence, 0)
