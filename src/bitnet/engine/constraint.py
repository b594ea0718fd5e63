"""What a sequence may say: a grammar, a schema, or anything else that rules tokens out one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import BitNetError

Mask = NDArray[np.bool_]


class Constraint(Protocol):
    """Belongs to one sequence and follows its tokens, in the engine's thread.

    stopped: the text is complete, and nothing can follow.
    """

    @property
    def stopped(self) -> bool: ...

    def mask(self) -> Mask:
        """Which tokens may come next, by id; what lies beyond its end may not. The end of text is a token like any."""
        ...

    def accept(self, token: int) -> None:
        """The next token has been chosen, one that the mask allowed."""
        ...


def allowed_tokens(constraint: Constraint, vocab_size: int) -> Mask:
    """(vocab_size,)"""
    with blamed():
        allowed = np.zeros(vocab_size, np.bool_)
        mask = constraint.mask()[:vocab_size]
        allowed[: len(mask)] = mask
        if not allowed.any():
            raise BitNetError("The constraint allows no token here.")
        return allowed


def follow(constraint: Constraint, token: int) -> bool:
    """Whether the text is complete with this token."""
    with blamed():
        constraint.accept(token)
        return constraint.stopped


@contextmanager
def blamed() -> Iterator[None]:
    """A constraint that fails ends its own sequence, not the step."""
    try:
        yield
    except BitNetError:
        raise
    except Exception as error:
        raise BitNetError(f"The constraint failed: {type(error).__name__}: {error}") from error
