"""Many requests to the engine, of which few wait at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from bitnet.engine import LLM, Sequence


def finished(llm: LLM, queued: Iterable[Sequence]) -> Iterator[tuple[Sequence, str]]:
    """Every sequence once it is done, in their order, and what it wrote.

    queued: adds a sequence to the engine whenever it is asked for one, so that a long list takes no memory.
    """
    running: deque[Sequence] = deque()
    try:
        for sequence in queued:
            running.append(sequence)
            if len(running) >= 2 * llm.config.max_sequences:
                yield finish(llm, running.popleft())
        while running:
            yield finish(llm, running.popleft())
    finally:
        for sequence in running:
            llm.abort(sequence)


def finish(llm: LLM, sequence: Sequence) -> tuple[Sequence, str]:
    """Those behind it go on meanwhile."""
    return sequence, "".join(output.text for output in llm.run([sequence]))
