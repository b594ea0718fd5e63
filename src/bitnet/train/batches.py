"""From rows on disk to the batches of a step."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet.train.data import BEGINS, ID, LEARNT, Words


def batch_of(words: Words) -> dict[str, Tensor]:
    """Rows of words as ids, the number of each token's document, and what is to be predicted at it (-100: nothing)."""
    following = np.roll(words, -1, axis=1)
    following[:, -1] = 0
    counts = ((following & LEARNT) != 0) & ((following & BEGINS) == 0)
    targets = np.where(counts, (following & ID).astype(np.int64), -100)
    ids = (words & ID).astype(np.int64)
    documents = np.cumsum((words & BEGINS) != 0, axis=1, dtype=np.int64)
    return {
        "ids": torch.from_numpy(ids),
        "documents": torch.from_numpy(documents),
        "targets": torch.from_numpy(targets),
    }


@dataclass(frozen=True)
class Rows:
    """Rows in an order of their own for every epoch; what a step sees depends on its number and the seed alone."""

    words: Words
    seed: int = 0
    _orders: dict[int, NDArray[np.int64]] = field(default_factory=dict, init=False, repr=False)

    def take(self, start: int, count: int) -> dict[str, Tensor]:
        """The rows `start` to `start + count` of the endless stream."""
        return batch_of(np.stack([self.words[self.row(i)] for i in range(start, start + count)]))

    def row(self, index: int) -> int:
        epoch, at = divmod(index, len(self.words))
        if epoch not in self._orders:
            self._orders.clear()
            self._orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(len(self.words))
        return int(self._orders[epoch][at])
