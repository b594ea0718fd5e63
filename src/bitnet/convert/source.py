"""What is converted: a checkpoint's tensors by our names, as ternary as the model uses them, a block of rows at a time.

No matrix is ever in memory whole where its file lets rows be read alone: a model of any size converts in the same few
hundred megabytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError
from bitnet.formats import Checkpoint
from bitnet.formats.ahead import in_order
from bitnet.formats.gguf_writer import Block
from bitnet.models.load import open_model, partly_ternary, resolve, rounds_floats, scaled, ternary_names
from bitnet.models.rotation import read_rotations
from bitnet.quant.rules import absmean, exact_ternary, row_sums, ternary_codes
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor

# Weights at a time. Larger arrays would be new pages of memory every time, which take longer than the work.
BLOCK = 1 << 17
Rounding = Callable[[str, NDArray[np.float32]], TernaryTensor]


class Source:
    """A checkpoint, checked to be a whole model.

    rounding: makes a float projection (n, k), given with our name for it, ternary; it sees the matrix whole. None
    leaves float projections as they are, but for the masters of a ternary model: absmean rounds them as at loading.
    """

    def __init__(self, checkpoint: Checkpoint, rounding: Rounding | None = None) -> None:
        self.checkpoint, self.rounding = checkpoint, rounding
        self.module, self.config, self.shapes = open_model(checkpoint)
        self.model = self.module.__name__.rpartition(".")[-1]
        self.found = resolve(checkpoint, self.shapes)  # our name -> the file's
        self.rotations = read_rotations(checkpoint, self.found)
        self.ternary, self.rounds = ternary_names(checkpoint, self.found), rounds_floats(checkpoint, self.found)
        if rounding is not None:
            self.ternary |= {name for name in self.found if name.endswith("_proj")}

    def dtype(self, name: str) -> str:
        """How the file stores a tensor."""
        return self.checkpoint.tensors()[self.found[name]].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def blocks(self, name: str, step: int = 1, heads: int = 0, apart: bool = False) -> Iterator[Block]:
        """Calls that give the tensor's rows, in order, a multiple of `step` at a time.

        heads: the rows of each head are reordered for the other kind of rotary embedding: rows (i, i + d/2) put side by
        side, or where they are so, `apart` again.
        """
        shape = self.shape(name)
        if len(shape) == 1:
            return iter([partial(self.vector, name)])
        read = self.reader(name)
        if heads:
            read, step = partial(reordered, read, shape[0] // heads, apart), math.lcm(step, shape[0] // heads)
        return (partial(read, rows) for rows in slices(shape, math.lcm(step, self.step(name))))

    def step(self, name: str) -> int:
        return self.checkpoint.row_step(self.found[name])

    def vector(self, name: str) -> Tensor:
        return self.sanitized(name, scaled(self.checkpoint.read(self.found[name]), self.found[name], self.checkpoint))

    def sanitized(self, name: str, tensor: Tensor) -> Tensor:
        """As GGUF files store it, which is as the model uses it."""
        sanitize = getattr(self.module, "sanitize", None)
        result: Tensor = sanitize(name, tensor, self.checkpoint.kind) if sanitize else tensor
        return result

    def reader(self, name: str) -> Callable[[slice], Tensor]:
        """Rows of a matrix as the model uses them; reads the masters of a ternary one once, for the scale."""
        read = partial(self.stored_rows, name)
        if name not in self.ternary or isinstance(read(slice(0, self.step(name))), TernaryTensor):
            return read
        if self.rounding is not None:
            whole = self.rounding(name, read(slice(None)).dequantize())
            return partial(rows_of_ternary, whole)
        if not self.rounds:
            return partial(self.exact_rows, name, read)
        return partial(rounded, read, *self.scale(name, read))

    def stored_rows(self, name: str, rows: slice) -> Tensor:
        spelled = self.found[name]
        return scaled(self.checkpoint.read_rows(spelled, rows), spelled, self.checkpoint)

    def exact_rows(self, name: str, read: Callable[[slice], Tensor], rows: slice) -> TernaryTensor:
        """Rows whose floats are ternary already."""
        weight = read(rows).dequantize()
        exact = exact_ternary(weight)
        if exact is None and weight.any():
            raise partly_ternary(self.checkpoint, self.found[name])
        return exact or TernaryTensor(np.zeros(weight.shape, np.int8), np.zeros((), np.float32))

    def scale(self, name: str, read: Callable[[slice], Tensor]) -> tuple[NDArray[np.float32], bool]:
        """The scale that loading would give these masters, and whether they are that scale times -1, 0, 1 already.

        The same as quant.rules.exact_ternary and ternarize, which see the matrix whole.
        """
        shape, sums, tops = self.shape(name), [], []
        for of_rows, top in in_order(partial(measure, read, rows) for rows in slices(shape, self.step(name))):
            sums.append(of_rows)
            tops.append(top)
        total = np.concatenate(sums)
        if not np.isfinite(total).all():
            raise FormatError(f"{self.checkpoint.path}: {self.found[name]} holds numbers that are not finite.")
        levels = {top for top in tops if top != 0}
        if len(levels) == 1 and None not in levels:
            return np.asarray(levels.pop(), np.float32), True
        return absmean(total, shape[1]), False


def slices(shape: tuple[int, ...], step: int) -> Iterator[slice]:
    """The rows of a matrix in parts of about BLOCK weights, multiples of `step` rows."""
    rows = max(1, BLOCK // (shape[1] * step)) * step
    return (slice(first, min(first + rows, shape[0])) for first in range(0, shape[0], rows))


def measure(read: Callable[[slice], Tensor], rows: slice) -> tuple[NDArray[np.float64], np.float32 | None]:
    """row_sums, and the one absolute value that all weights but zeros have; None where there are several."""
    weight = read(rows).dequantize()
    return row_sums(weight), one_level(weight) if one_level(weight[:1]) is not None else None


def one_level(weight: NDArray[np.float32]) -> np.float32 | None:
    size = np.abs(weight)
    top = size.max(initial=0)
    return top if ((size == top) | (size == 0)).all() else None


def rounded(read: Callable[[slice], Tensor], scale: NDArray[np.float32], exact: bool, rows: slice) -> TernaryTensor:
    weight = read(rows).dequantize()
    return TernaryTensor(np.sign(weight).astype(np.int8) if exact else ternary_codes(weight, scale), scale)


def rows_of_ternary(tensor: TernaryTensor, rows: slice) -> TernaryTensor:
    return TernaryTensor(tensor.codes[rows], tensor.scales[rows] if tensor.scales.ndim else tensor.scales)


def reordered(read: Callable[[slice], Tensor], width: int, apart: bool, rows: slice) -> Tensor:
    """Rows (i, i + d/2) of each head of `width` = d rows side by side; `apart`: the other way round."""
    tensor = read(rows)
    pairs = (-1, width // 2, 2) if apart else (-1, 2, width // 2)
    index = np.arange(tensor.shape[0]).reshape(pairs).swapaxes(1, 2).reshape(-1)
    if isinstance(tensor, TernaryTensor):
        scales = tensor.scales[index] if tensor.scales.ndim else tensor.scales
        return TernaryTensor(tensor.codes[index], scales)
    return DenseTensor(tensor.data[index], tensor.dtype, None if tensor.scales is None else tensor.scales[index])
