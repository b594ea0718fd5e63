"""Values between operations that are not computed yet, so that the operation that reads them may do it on its way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from bitnet.backends.base import Rope
from bitnet.backends.cuda.device import Array

ACTIVATIONS = {"": 0, "silu": 1, "relu2": 2, "gelu": 3}  # as rows.cuh numbers them


@dataclass(slots=True, eq=False)
class Prepared:
    """act(x) * up, or x where there is no act, then a norm over the whole row, where there is one."""

    x: Array
    up: Array | None = None
    act: str = ""
    norm: Array | None = None
    eps: float = 0.0
    done: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(slots=True, eq=False)
class Turned:
    """x (T, heads * head_dim), each head to be turned by its position."""

    x: Array
    positions: Array
    rope: Rope
    done: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape


@dataclass(slots=True, eq=False)
class Products:
    """x times several matrices, to be computed together. run(residual) does it and adds the residual to the first."""

    run: Callable[[Array | None], list[Array]]
    shapes: list[tuple[int, int]]
    done: list[Array] = field(default_factory=list)

    def compute(self, residual: Array | None = None) -> None:
        self.done = self.run(residual)
        self.run = nothing  # which gives back what it read


def nothing(_: Array | None) -> list[Array]:
    raise RuntimeError("A product was computed twice.")


@dataclass(slots=True, eq=False)
class Product:
    of: Products
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.shapes[self.index]


Value = Array | Prepared | Turned | Product
