"""Which blocks of the cache hold what: keys and values of a block depend on its tokens, on all before them, and on
nothing else."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

from bitnet.backends.base import BLOCK_SIZE
from bitnet.engine.sequence import Sequence

LOOKED_AT = 64  # blocks that a text is compared with to say where it left them


def chained(parent: bytes, tokens: bytes) -> bytes:
    """Of a block and all before it, 128 bits: no two texts will ever have the same, by accident or on purpose."""
    return blake2b(parent + tokens, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Content:
    """hash: of tokens and all before them. parent: of those before. tokens: int32."""

    hash: bytes
    parent: bytes
    tokens: bytes


class PrefixIndex:
    """memory: how many blocks that were given up it remembers, to say so."""

    def __init__(self, memory: int) -> None:
        self.contents: dict[int, Content] = {}
        self._blocks: dict[bytes, int] = {}
        self._next: dict[bytes, dict[int, None]] = {}  # blocks that follow the same text
        self._evicted: dict[bytes, None] = {}
        self._memory = memory

    def __contains__(self, block: int) -> bool:
        return block in self.contents

    def find(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the beginning of the sequence's context, at least its last token excepted."""
        blocks = []
        for i in range(shareable(sequence)):
            block = self._blocks.get(block_hash(sequence, i))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def add(self, sequence: Sequence, i: int) -> None:
        """The sequence's i-th block is computed; nothing happens where another holds the same."""
        hash = block_hash(sequence, i)
        if hash in self._blocks:
            return
        block, parent = sequence.blocks[i], block_hash(sequence, i - 1)
        self.contents[block] = Content(hash, parent, block_tokens(sequence, i))
        self._blocks[hash] = block
        self._next.setdefault(parent, {})[block] = None
        self._evicted.pop(hash, None)

    def forget(self, block: int) -> None:
        """What the block holds will be overwritten."""
        content = self.contents.pop(block, None)
        if content is None:
            return
        del self._blocks[content.hash]
        siblings = self._next[content.parent]
        del siblings[block]
        if not siblings:
            del self._next[content.parent]
        self._evicted[content.hash] = None
        if len(self._evicted) > self._memory:
            del self._evicted[next(iter(self._evicted))]

    def why_no_more(self, sequence: Sequence, found: int) -> str:
        """Why only `found` blocks of the sequence were there; "" where there can be no more."""
        if found >= shareable(sequence):
            return "scored" if sequence.scored else ""
        if sequence.slid:
            return "sliding"
        if block_hash(sequence, found) in self._evicted:
            return "evicted"
        following = self._next.get(block_hash(sequence, found - 1), {})
        tokens = block_tokens(sequence, found)
        same = max((common(tokens, self.contents[b].tokens) for b in islice(reversed(following), LOOKED_AT)), default=0)
        if not found and not same:
            return "first"
        return f"{'diverged' if following else 'ended'} at token {found * BLOCK_SIZE + same}"


def shareable(sequence: Sequence) -> int:
    """Whole blocks before the first token whose logits are wanted; those of the last one always are."""
    return min(sequence.score_from, len(sequence) - 1) // BLOCK_SIZE


def block_tokens(sequence: Sequence, i: int) -> bytes:
    return array("i", sequence.tokens(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE)).tobytes()


def block_hash(sequence: Sequence, i: int) -> bytes:
    """Of the sequence's i-th block, which must be whole; its salt before the first."""
    hashes = sequence.hashes
    while len(hashes) <= i:
        hashes.append(chained(hashes[-1] if hashes else sequence.salt, block_tokens(sequence, len(hashes))))
    return hashes[i] if i >= 0 else sequence.salt


def common(a: bytes, b: bytes) -> int:
    """How many of the first tokens are the same."""
    pairs = zip(memoryview(a).cast("i"), memoryview(b).cast("i"))
    return next((i for i, (x, y) in enumerate(pairs) if x != y), BLOCK_SIZE)
