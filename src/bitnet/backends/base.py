"""The operations that a model is written in. A backend is a meaning for them.

T is the number of tokens in a step, on one flat axis; B the number of sequences they belong to; S the number of rows
whose logits are wanted. Activations are flat float32 rows (T, d); heads lie side by side in a row, head-major.
A model never looks inside an activation: that is what lets NumPy, C++, PyTorch and TVM run the same file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bitnet.quant.stored import StoredTensor
from bitnet.quant.tensor import Tensor

Value = Any  # an activation, in the backend's own type
Weight = Any  # a parameter, as the backend keeps it
Cache = Any  # keys and values of every layer, as the backend keeps them
Ints = NDArray[np.int32]

BLOCK_SIZE = 16  # positions in a block of the paged cache
KV_TYPES = ("f16", "f32", "int8")  # of cached keys and values


def kv_vector_bytes(dtype: str, head_dim: int) -> int:
    """What the key or the value of one position and head takes in a cache."""
    return head_dim + 4 if dtype == "int8" else head_dim * (2 if dtype == "f16" else 4)


def each_of(value: int | Ints, count: int) -> Ints:
    return np.full(count, value, np.int32) if isinstance(value, int) else value


@dataclass(frozen=True, slots=True)
class Step:
    """What one run of the model works on, beside the numbers that flow through it.

    ids: (T,) token ids of all sequences, one after the other.
    positions: (T,) place of each token in its sequence; consecutive within a sequence.
    starts: (B + 1,) sequence b owns the flat rows starts[b] to starts[b + 1].
    want: (S,) flat rows whose logits are wanted.
    block_tables: (B, blocks) cache block of each run of BLOCK_SIZE positions; -1 where there is none.
    top: how many of the likeliest logits are needed, of each wanted row or of all alike; 0: all.
    draws: (S, 4) float64, how tokens are drawn from these: temperature, top_p, min_p, and the number in [0, 1) that
    decides. None: tokens are not asked for.
    """

    ids: Ints
    positions: Ints
    starts: Ints
    want: Ints
    block_tables: Ints
    top: int | Ints = 0
    draws: NDArray[np.float64] | None = None

    @property
    def tops(self) -> Ints:
        """`top` of each wanted row (S,)."""
        return each_of(self.top, len(self.want))

    @property
    def sequences(self) -> Ints:
        """Which sequence each token belongs to (T,)."""
        return np.repeat(np.arange(len(self.starts) - 1, dtype=np.int32), np.diff(self.starts))

    @classmethod
    def whole(cls, ids: Sequence[int], want: Sequence[int] | None = None) -> Step:
        """One sequence from its first token, its blocks numbered from 0; all rows wanted unless told otherwise."""
        count = len(ids)
        blocks = -(-count // BLOCK_SIZE)
        return cls(
            ids=np.asarray(ids, np.int32),
            positions=np.arange(count, dtype=np.int32),
            starts=np.array([0, count], np.int32),
            want=np.asarray(range(count) if want is None else want, np.int32),
            block_tables=np.arange(blocks, dtype=np.int32)[None],
        )


@dataclass(frozen=True, slots=True, eq=False)
class TopLogits:
    """A row of logits (vocab,) of which only the largest are known: those that decide its token. As an array, the
    others are -inf.

    ids: ascending. values: of these.
    """

    ids: Ints
    values: NDArray[np.float32]
    vocab: int

    def __len__(self) -> int:
        return self.vocab

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.float32]:
        row = np.full(self.vocab, -np.inf, np.float32)
        row[self.ids] = self.values
        return row


Row = NDArray[np.float32] | TopLogits | int  # logits (vocab,), or the token that was drawn from them


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (arXiv:2104.09864).

    style: "neox" turns pairs (i, i + d/2); "interleaved" pairs (2i, 2i + 1), as GGUF's llama files store q and k.
    factors: (d / 2,) divisors of the frequencies, as Llama 3.1's long-context scaling has them.
    scale: of the cosines and sines, hence of queries and keys; YaRN has one.
    """

    theta: float
    head_dim: int
    style: str = "neox"
    factors: tuple[float, ...] | None = None
    scale: float = 1.0

    def angles(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines (count, head_dim / 2) of positions 0 to count - 1, scaled, computed in float64."""
        frequencies = self.theta ** -(np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        if self.factors is not None:
            frequencies = frequencies / np.asarray(self.factors, np.float64)
        angles = np.arange(count, dtype=np.float64)[:, None] * frequencies
        return (self.scale * np.cos(angles)).astype(np.float32), (self.scale * np.sin(angles)).astype(np.float32)


class Model(Protocol):
    """A model, as far as a backend knows it: a function written in operations."""

    def __call__(self, step: Step, cache: Cache) -> Value: ...

    def on(self, ops: Ops) -> Model:
        """The same function and weights, written in other operations."""
        ...


class Ops(ABC):
    """A backend. Weights go in through `put` once; the other methods are the operations."""

    name: str
    screens: bool = False  # whether add_screen does something
    draws: bool = False  # whether `compile` makes tokens of rows whose step says how

    def settle(self, count: int, room: int) -> float:
        """Decide how the ternary weights to come are kept: `count` of them, for which there are `room` bytes.

        Returns the bits that a weight will take.
        """
        return 2.0

    @abstractmethod
    def put(self, tensor: Tensor) -> Weight:
        """Take a weight into the backend's own memory and layout."""

    def put_stored(self, stored: StoredTensor) -> Weight | None:
        """As `put`, straight from a file; None where that cannot be done, or fails: `put` will say why."""
        return None

    @abstractmethod
    def new_cache(self, layers: int, blocks: int, kv_heads: int, head_dim: int, dtype: str) -> Cache:
        """A cache of `blocks` blocks of BLOCK_SIZE positions in every layer; dtype one of KV_TYPES.

        "int8" keeps each vector (of a position and head) as int8 codes and a float32 scale, absmax / 127.
        """

    @abstractmethod
    def embed(self, ids: Ints, table: Weight) -> Value:
        """(T,) and (vocab, d) -> (T, d)."""

    @abstractmethod
    def rms_norm(self, x: Value, weight: Weight, eps: float) -> Value:
        """(T, m * d) and (d,) -> the same: x / sqrt(mean(x^2) + eps) * weight, each run of d columns by itself."""

    @abstractmethod
    def linear(self, x: Value, *weights: Weight) -> tuple[Value, ...]:
        """(T, k) times each (n, k) -> one (T, n) for each weight.

        The weight decides the arithmetic: a ternary one quantises x to int8 (once for all of them, per token) and
        multiplies exactly in integers, then scales; a dense one multiplies in float32.
        """

    @abstractmethod
    def rope(self, x: Value, positions: Ints, rope: Rope) -> Value:
        """(T, heads * head_dim) -> the same, each head turned by its position."""

    @abstractmethod
    def attention(
        self, q: Value, k: Value, v: Value, cache: Cache, layer: int, step: Step, head_dim: int, window: int = 0
    ) -> Value:
        """(T, H * D), (T, Hkv * D) twice -> (T, H * D).

        Writes k and v into the cache, then each row looks at its own sequence up to itself; scale 1 / sqrt(D).
        window: how many positions a row looks at, itself included; 0: all.
        """

    @abstractmethod
    def gate(self, act: str, g: Value, u: Value) -> Value:
        """(T, f) twice -> act(g) * u; act is "silu", "relu2" or "gelu"."""

    @abstractmethod
    def add(self, x: Value, y: Value) -> Value:
        """(T, d) twice -> (T, d)."""

    @abstractmethod
    def scale(self, x: Value, c: float) -> Value:
        """(T, d) -> x * c."""

    @abstractmethod
    def hadamard(self, x: Value, signs: Weight, block: int, inverse: bool = False) -> Value:
        """(T, d) and (d,) of -1 and 1 -> H(signs * x), with H the normalised Walsh-Hadamard matrix (Sylvester's) of
        each `block` columns; inverse: signs * H(x)."""

    @abstractmethod
    def take(self, x: Value, rows: Ints) -> Value:
        """(T, d) -> (S, d)."""

    @abstractmethod
    def head(self, x: Value, weight: Weight, top: int | Ints = 0) -> Value:
        """(S, d) and (vocab, d) -> logits (S, vocab): a dense head in float, a ternary one as `linear` does, in int8.

        Where top > 0, of all rows alike or of each (S,), only as many of the largest, and those equal to them, are
        needed: any other may be -inf.
        """

    def add_screen(self, weight: Weight) -> None:
        """Spend memory on `weight` so that `head` with top > 0 reads less; a backend may have no such thing."""

    def to_host(self, x: Value) -> NDArray[np.float32]:
        """The numbers of an activation."""
        return np.asarray(x)

    def free_bytes(self) -> int | None:
        """Memory that weights and caches may still take; None: what the machine has."""
        return None

    def compile(self, model: Model, cache: Cache) -> Callable[[Step], Value]:
        """`model` on `cache`, to be called for every step; a backend may capture it once and replay it.

        It gives logits on the host: (S, vocab), or a list of S rows, of which those with a top may be TopLogits, and
        where the step has draws the token itself: the one that engine/sampling.py draws from the same logits.
        """
        return lambda step: model(step, cache)


Weights = Mapping[str, Weight]
