"""What can be said of a model file: metadata, tensors, totals, ternary histogram and hashes, as JSON has them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from bitnet.errors import BitNetError
from bitnet.formats import Checkpoint, TensorInfo, digest
from bitnet.formats.gguf_types import READABLE
from bitnet.models import open_model
from bitnet.models.load import TERNARY_TYPES
from bitnet.quant.tensor import TernaryTensor

SHOWN = 8  # entries of a long array


def inspect(checkpoint: Checkpoint, path: Path, histogram: bool, sha256: bool) -> dict[str, Any]:
    infos = list(checkpoint.tensors().values())
    found: dict[str, Any] = {
        "path": str(path),
        "kind": checkpoint.kind,
        "architecture": checkpoint.architecture,
        "runs": why_not(checkpoint),
        "metadata": {key: abbreviated(value) for key, value in checkpoint.metadata.items()},
        "tensors": [{"name": t.name, "shape": t.shape, "type": t.dtype, "bytes": t.nbytes} for t in infos],
        "types": totals(infos),
        "parameters": sum(prod(t.shape) for t in infos),
        "bytes": sum(t.nbytes for t in infos),
    }
    found["bits_per_weight"] = bits(found["bytes"], found["parameters"])
    if histogram:
        found["histogram"] = ternary_histogram(checkpoint, infos)
    if sha256:
        found["sha256"] = {each.name: digest.sha256(each) for each in files(path)}
    return found


def why_not(checkpoint: Checkpoint) -> str:
    """ "yes", or why this version cannot run the model."""
    try:
        open_model(checkpoint)
    except BitNetError as error:
        return f"no: {error.message}"
    types = {info.dtype for info in checkpoint.tensors().values()} if checkpoint.kind == "gguf" else set()
    unread = sorted(types - {*READABLE})
    return f"no: tensors in {', '.join(unread)} are not read." if unread else "yes"


def abbreviated(value: Any) -> Any:
    """Metadata as JSON has it; long arrays as their length and first entries."""
    if isinstance(value, Mapping):
        return {str(key): abbreviated(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        first = [abbreviated(each) for each in value[:SHOWN]]
        return first if len(value) <= SHOWN else {"length": len(value), "first": first}
    if isinstance(value, np.generic):
        value = value.item()
    exact = isinstance(value, (str, int, type(None))) or (isinstance(value, float) and math.isfinite(value))
    return value if exact else str(value)


def totals(infos: Iterable[TensorInfo]) -> list[dict[str, Any]]:
    """Per type: tensors, weights, bytes, bits per weight; the largest first."""
    groups: dict[str, list[TensorInfo]] = {}
    for info in infos:
        groups.setdefault(info.dtype, []).append(info)
    rows = []
    for dtype, group in groups.items():
        weights, nbytes = sum(prod(t.shape) for t in group), sum(t.nbytes for t in group)
        rows.append(
            {"type": dtype, "tensors": len(group), "weights": weights, "bytes": nbytes, "bits": bits(nbytes, weights)}
        )
    return sorted(rows, key=lambda row: -row["bytes"])


def bits(nbytes: int, weights: int) -> float:
    return 8 * nbytes / weights if weights else 0.0


def ternary_histogram(checkpoint: Checkpoint, infos: Iterable[TensorInfo]) -> dict[str, float]:
    """The shares of -1, 0 and +1 among all ternary weights; empty where there are none."""
    counts: Counter[str] = Counter()
    for info in infos:
        if info.dtype in TERNARY_TYPES and isinstance(tensor := checkpoint.read(info.name), TernaryTensor):
            others, surplus = int(np.count_nonzero(tensor.codes)), int(tensor.codes.sum(dtype=np.int64))
            counts["-1"] += (others - surplus) // 2
            counts["0"] += tensor.codes.size - others
            counts["+1"] += (others + surplus) // 2
    weights = sum(counts.values())
    return {code: count / weights for code, count in counts.items()}


def files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(each for each in path.iterdir() if each.suffix in (".safetensors", ".gguf", ".json"))
