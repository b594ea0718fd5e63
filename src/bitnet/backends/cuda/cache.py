"""Keys and values on the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bitnet.backends.base import BLOCK_SIZE
from bitnet.backends.cuda.device import Array, Device

TYPES = {"f32": 0, "f16": 1, "int8": 2}  # as common.cuh numbers them
SIZES = {"f32": 4, "f16": 2, "int8": 1}


@dataclass(frozen=True, slots=True, eq=False)
class KVCache:
    """data: (layers, keys then values, kv_heads, slots, head_dim); scales of int8: float32, without the last axis.

    There is one block more than was asked for, `spare`: rows that fill a step up write there.
    """

    dtype: str
    kv_heads: int
    head_dim: int
    blocks: int
    data: Array
    scales: Array | None

    @property
    def slots(self) -> int:
        return (self.blocks + 1) * BLOCK_SIZE

    @property
    def spare(self) -> int:
        return self.blocks

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (self.scales.nbytes if self.scales else 0)

    def of_layer(self, layer: int) -> tuple[int, int, int, int]:
        """Addresses of keys, values, and the scales of both, 0 where there are none."""
        vectors = self.kv_heads * self.slots
        size = vectors * self.head_dim * SIZES[self.dtype]
        first = self.data.address + 2 * layer * size
        scales = self.scales.address + 2 * layer * vectors * 4 if self.scales else 0
        return first, first + size, scales, scales + vectors * 4 if scales else 0


def new_cache(device: Device, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> KVCache:
    vectors = layers * 2 * kv_heads * (blocks + 1) * BLOCK_SIZE
    data = device.zeros((vectors * head_dim * SIZES[dtype],), np.uint8)
    scales = device.zeros((vectors,)) if dtype == "int8" else None
    return KVCache(dtype, kv_heads, head_dim, blocks, data, scales)
