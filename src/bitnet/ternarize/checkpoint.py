"""A float checkpoint seen through a rule: its projections read as ternary, one at a time, everything else as it is.

So whatever takes a checkpoint takes a model as it would be after quantisation: `models.load` runs it, and
`write_checkpoint` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, ParameterError
from bitnet.formats.checkpoint import Checkpoint, TensorInfo
from bitnet.formats.gguf_types import BY_NAME
from bitnet.models.load import (
    TERNARY_TYPES,
    is_kept,
    kept_names,
    open_model,
    resolve,
    rounds_floats,
    ternary_names,
)
from bitnet.quant.rules import exact_ternary
from bitnet.quant.stored import StoredTensor
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor
from bitnet.quant.threshold import Group, Rule, ternarize, unit_count

Floats = NDArray[np.float32]
FLOAT32_SCALES = ("I2_S", "IQ2_BN")  # the other types round a scale to float16
TERNARY_WRITABLE = ("TQ2_0", "TQ1_0", "I2_S", "Q2_0", "PQ2_0", "PTQ1_0", "IQ2_BN", "IQ1_BN")
PREFERRED = ("TQ2_0", "I2_S", "Q2_0")  # the first that takes all the projections


@dataclass(frozen=True, slots=True)
class Choice:
    """How one projection is made ternary: by a rule, its scales times `factor`: () for all, or (n,) for the rows."""

    rule: Rule
    factor: Floats | None = None

    def apply(self, weight: Floats) -> TernaryTensor:
        made = ternarize(weight, self.rule)
        if self.factor is None:
            return made
        return replace(made, scales=(made.scales.T * self.factor).T)  # the rows are the first axis, if there is one


@dataclass(frozen=True, slots=True)
class Projection:
    """name: ours; spelled: the file's. state: "float", "master" of a ternary weight (what the model was trained as),
    "ternary" already, or "kept" in float because somebody said so."""

    name: str
    spelled: str
    shape: tuple[int, int]
    state: str

    @property
    def rounded(self) -> bool:
        return self.state in ("float", "master")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of a projection. sparsity: the share of zeros. error: |W - ternary| / |W|. scale: the mean of its scales.
    exact: whether its floats were ternary already."""

    weights: int
    sparsity: float
    error: float
    scale: float
    exact: bool = False


class Ternarized(Checkpoint):
    """`source` with the projections in `choices`, by the file's names, as ternary tensors that `dtype` can store.

    statistics: of the projections read so far, by the file's names.
    """

    def __init__(self, source: Checkpoint, choices: Mapping[str, Choice], dtype: str) -> None:
        self.source, self.choices, self.dtype = source, choices, dtype
        self.kind, self.path, self.architecture = source.kind, source.path, source.architecture
        self.metadata = source.metadata
        self.statistics: dict[str, Statistics] = {}
        self._latest: tuple[str, Tensor] = (
            "",
            DenseTensor(np.empty(0)),
        )  # a writer looks at a tensor before it reads it

    def tensors(self) -> Mapping[str, TensorInfo]:
        infos = self.source.tensors()
        return {name: replace(info, dtype="packed") if name in self.choices else info for name, info in infos.items()}

    def read(self, name: str) -> Tensor:
        if name not in self.choices:
            return self.source.read(name)
        latest, tensor = self._latest
        if latest == name:
            return tensor
        weight = float_weight(self.source, name)
        exact = exact_ternary(weight)
        made = held(exact or self.choices[name].apply(weight), self.dtype, name)
        self.statistics[name] = measure(weight, made, exact is not None)
        self._latest = name, made
        return made

    def row_step(self, name: str) -> int:
        return super().row_step(name) if name in self.choices else self.source.row_step(name)

    def read_rows(self, name: str, rows: slice) -> Tensor:
        return super().read_rows(name, rows) if name in self.choices else self.source.read_rows(name, rows)

    def stored(self, name: str) -> StoredTensor | None:
        return None if name in self.choices else self.source.stored(name)


def float_weight(source: Checkpoint, name: str) -> Floats:
    tensor = source.read(name)
    weight = tensor.dequantize()
    if not np.isfinite(weight).all():
        raise FormatError(f"{source.path}: {name} holds numbers that are not finite.")
    return weight


def held(tensor: TernaryTensor, dtype: str, name: str) -> TernaryTensor:
    """`tensor` as it will come back from a file: with its scales rounded as `dtype` stores them."""
    if dtype in FLOAT32_SCALES:
        return tensor
    with np.errstate(over="ignore"):
        scales = tensor.scales.astype(np.float16).astype(np.float32)
    if not np.isfinite(scales).all() or ((scales == 0) & (tensor.scales != 0)).any():
        raise ParameterError(
            f"{name}: scales from {tensor.scales.min():g} to {tensor.scales.max():g} do not fit into {dtype}.",
            "Choose --type i2_s, which stores one float32 scale for a tensor.",
        )
    return replace(tensor, scales=scales)


def measure(weight: Floats, made: TernaryTensor, exact: bool = False) -> Statistics:
    size = float(np.linalg.norm(weight))
    error = float(np.linalg.norm(weight - made.dequantize())) / size if size else 0.0
    zeros = 1 - np.count_nonzero(made.codes) / made.codes.size
    return Statistics(weight.size, zeros, error, float(made.scales.mean()), exact)


def projections(checkpoint: Checkpoint, skip: tuple[str, ...] = ()) -> list[Projection]:
    """Every projection of the model, in the order of its layers. skip: patterns of our names, such as "layers.0.*".

    ParameterError where a pattern matches none, or one that the architecture rounds in any case.
    """
    _, _, shapes = open_model(checkpoint)
    found = resolve(checkpoint, shapes)
    infos, rounded, masters = checkpoint.tensors(), ternary_names(checkpoint, found), rounds_floats(checkpoint, found)
    kept = kept_names(checkpoint)
    names = {name: spelled for name, spelled in found.items() if name.endswith("_proj")}
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ParameterError(f"--skip {pattern} matches no projection.", 'They are called "layers.0.mlp.up_proj".')
    made = []
    for name, spelled in names.items():
        skipped = any(fnmatchcase(name, pattern) for pattern in skip)
        if infos[spelled].dtype in TERNARY_TYPES or (name in rounded and not masters):
            state = "ternary"
        elif name in rounded:
            if skipped:
                raise ParameterError(
                    f"{name} cannot be left out: this model was trained as ternary and is rounded when it is loaded."
                )
            state = "master"
        else:
            state = "kept" if skipped or is_kept(name, kept) else "float"
        n, k = shapes[name]
        made.append(Projection(name, spelled, (n, k), state))
    return made


def stored_type(found: list[Projection], group: Group, wanted: str = "auto") -> str:
    """The type that can store all projections of `found` with such scales: `wanted`, or the first of PREFERRED.

    ParameterError where there is none.
    """
    needs: list[tuple[tuple[int, int], Group]] = []
    for each in found:
        if each.rounded:
            unit_count(*each.shape, group)
        if each.state != "kept":
            needs.append((each.shape, group if each.rounded else "tensor"))
    if wanted != "auto" and wanted.upper() not in TERNARY_WRITABLE:
        raise ParameterError(f"--type is {wanted!r}; expected auto, {', '.join(TERNARY_WRITABLE).lower()}.")
    candidates = PREFERRED if wanted == "auto" else (wanted.upper(),)
    for dtype in candidates:
        if not any(misfit(dtype, *need) for need in needs):
            return dtype
    reasons = sorted({misfit(dtype, *need) for dtype in candidates for need in needs} - {""})
    raise ParameterError(" ".join(reasons), "Choose another --group or --type.")


def misfit(dtype: str, shape: tuple[int, int], group: Group) -> str:
    """Why `dtype` cannot store a matrix of this shape with these scales; empty where it can."""
    kind = BY_NAME[dtype]
    if not kind.divides(shape):
        return f"{dtype} stores {kind.rule}; {shape} does not divide."
    if dtype == "I2_S":
        return "" if group == "tensor" else "I2_S has one scale for a tensor."
    if kind.row_header:
        return "" if group in ("tensor", "row") else f"{dtype} has a scale for each row."
    if isinstance(group, int) and group != shape[1] and group % kind.block:
        return f"{dtype} has a scale for {kind.block} weights, not for {group}."
    return ""
