"""Who has which block of the paged cache. The blocks themselves belong to the backend."""

from __future__ import annotations

from bitnet.backends.base import BLOCK_SIZE
from bitnet.engine.prefix_index import PrefixIndex
from bitnet.engine.sequence import Sequence


class BlockPool:
    """Blocks 0 to count - 1. Each is blank, or kept for what it holds, or has owners.

    share: whether sequences that begin alike own the same blocks, which then outlive their owners until the room is
    needed. Only whole blocks are shared, computed to the end, and nobody ever writes into one: so the numbers in them
    are those that every owner would have computed.
    queries, hits: tokens of contexts that were looked for, and those that were there.
    """

    def __init__(self, count: int, share: bool = False) -> None:
        self.count, self.share = count, share
        self.queries = self.hits = 0
        self.index = PrefixIndex(count)
        self._blank = list(range(count - 1, -1, -1))  # the most recently freed is given out first, for it is warm
        self._kept: dict[int, None] = {}  # the least recently used first
        self._owners = [0] * count

    @property
    def free(self) -> int:
        return len(self._blank) + len(self._kept)

    def find(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of the sequence's context already."""
        return self.index.find(sequence) if self.share else []

    def missing(self, sequence: Sequence, length: int, found: list[int]) -> int:
        """How many free blocks `length` positions take where the blocks `found` can be used."""
        return sequence.blocks_for(length) - sum(self._owners[block] > 0 for block in found)

    def adopt(self, sequence: Sequence, found: list[int]) -> None:
        """Begin a sequence, or begin it again, with the blocks that `find` found."""
        for block in found:
            self._kept.pop(block, None)
            self._owners[block] += 1
        if found:
            sequence.blocks, sequence.offered = found, len(found)
            sequence.computed = len(found) * BLOCK_SIZE

    def count_hits(self, sequence: Sequence) -> None:
        """Note how much of a new sequence was there, and why not more."""
        sequence.cached = sequence.computed
        if not self.share:
            sequence.miss = "disabled"
            return
        sequence.miss = self.index.why_no_more(sequence, len(sequence.blocks))
        self.queries += min(len(sequence), sequence.score_from)
        self.hits += sequence.cached

    def offer(self, sequence: Sequence) -> None:
        """Let others have the sequence's blocks that are computed to the end."""
        while self.share and sequence.offered < sequence.computed // BLOCK_SIZE:
            self.index.add(sequence, sequence.offered)
            sequence.offered += 1

    def grow(self, sequence: Sequence, length: int) -> bool:
        """Give `sequence` the blocks that `length` positions need; False, and nothing given, when there are too few."""
        needed = sequence.blocks_for(length)
        if needed > self.free:
            return False
        sequence.blocks.extend(self._take() for _ in range(needed))
        return True

    def trim(self, sequence: Sequence, length: int) -> None:
        """Take back the blocks that `length` positions do not need."""
        count = -(-length // BLOCK_SIZE)
        for block in reversed(sequence.blocks[count:]):  # the end is given up before the beginning
            self._owners[block] -= 1
            if not self._owners[block]:
                self._put(block)
        del sequence.blocks[count:]
        sequence.offered = min(sequence.offered, count)

    def rewrite(self, sequence: Sequence) -> None:
        """What comes after the positions that are computed has changed, and will be written anew."""
        whole, rest = divmod(sequence.computed, BLOCK_SIZE)
        if rest and self._owners[sequence.blocks[whole]] == 1:
            self.index.forget(sequence.blocks[whole])
        else:
            sequence.computed = whole * BLOCK_SIZE
        self.trim(sequence, sequence.computed)

    def release(self, sequence: Sequence) -> None:
        self.offer(sequence)
        self.trim(sequence, 0)

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block = next(iter(self._kept))
            del self._kept[block]
            self.index.forget(block)
        self._owners[block] = 1
        return block

    def _put(self, block: int) -> None:
        if block in self.index:
            self._kept[block] = None
        else:
            self._blank.append(block)
