"""Weights that are stored rotated by a Hadamard matrix, as PrismML's Bonsai files may declare them.

Before such a weight its input x becomes H(s * x), block by block, with a sign s for each column; a row z that is looked
up in such a table stands for s * H(z). The metadata `prism.hadamard.*` says which weights these are. A file that
declares them and is run without prints fluent nonsense, so whatever is not understood here is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.checkpoint import Checkpoint

PREFIX = "prism.hadamard."
EXPECTED = {"version": 1, "transform": "normalized-sylvester-walsh-hadamard", "axis": "input-last-dimension"}


@dataclass(frozen=True, slots=True)
class Rotation:
    """signs: (k,) of -1 and 1, as float32. block: columns that are turned together, a power of two that divides k."""

    signs: Any
    block: int

    @property
    def nbytes(self) -> int:
        return int(self.signs.nbytes)


def read_rotations(checkpoint: Checkpoint, found: Mapping[str, str]) -> dict[str, Rotation]:
    """The rotation of each weight that has one, by our name; empty where the file declares none.

    found: our name -> the file's name.
    """
    metadata = {key.removeprefix(PREFIX): value for key, value in checkpoint.metadata.items() if key.startswith(PREFIX)}
    if not metadata:
        return {}
    for key, expected in EXPECTED.items():
        if metadata.get(key) != expected:
            raise UnsupportedError(
                f"{checkpoint.path}: {PREFIX}{key} is {metadata.get(key)!r:.100}; only {expected!r} is supported."
            )
    block, signs = read_block(checkpoint, metadata), read_signs(checkpoint, metadata)
    ours = {spelled: name for name, spelled in found.items()}
    rotations: dict[str, Rotation] = {}
    for key, allowed in (("weight_names", "_proj lm_head"), ("inverse_weight_names", "embed_tokens")):
        for spelled in names(checkpoint, metadata, key):
            name = ours.get(spelled, "")
            if not name.endswith(tuple(allowed.split())):
                raise UnsupportedError(f"{checkpoint.path}: {PREFIX}{key} lists {spelled!r}, which cannot be rotated.")
            width = checkpoint.tensors()[spelled].shape[1]
            if width % block or (signs is not None and width not in signs):
                raise FormatError(f"{checkpoint.path}: {spelled} has rows of {width}; {PREFIX}* has nothing for them.")
            rotations[name] = Rotation(signs[width] if signs is not None else np.ones(width, np.float32), block)
    if "embed_tokens" in rotations and "lm_head" not in found:
        rotations["lm_head"] = rotations["embed_tokens"]  # the same rows, and a head reads as a projection does
    return rotations


def read_block(checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> int:
    block = metadata.get("block_size")
    if isinstance(block, bool) or not isinstance(block, int) or block < 1 or block & (block - 1) or block > 1 << 20:
        raise FormatError(f"{checkpoint.path}: {PREFIX}block_size is {block!r:.100}; expected a power of two.")
    return block


def read_signs(checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> dict[int, NDArray[np.float32]] | None:
    """Signs by the width of the weights that they are for; None where all are +1."""
    mode = metadata.get("sign_mode")
    if mode == "identity":
        return None
    if mode != "explicit":
        raise UnsupportedError(
            f"{checkpoint.path}: {PREFIX}sign_mode is {mode!r:.100}; only identity and explicit are supported."
        )
    widths, values = (whole_numbers(checkpoint, metadata, key) for key in ("sign_widths", "sign_values"))
    if (widths < 1).any() or len(set(widths.tolist())) != len(widths) or widths.sum() != len(values):
        raise FormatError(f"{checkpoint.path}: {PREFIX}sign_widths do not add up to its {len(values)} sign_values.")
    if not np.isin(values, (-1, 1)).all():
        raise FormatError(f"{checkpoint.path}: {PREFIX}sign_values holds numbers that are neither -1 nor 1.")
    parts = np.split(values.astype(np.float32), np.cumsum(widths)[:-1])
    return dict(zip(widths.tolist(), parts, strict=True))


def whole_numbers(checkpoint: Checkpoint, metadata: Mapping[str, Any], key: str) -> NDArray[np.int64]:
    given = metadata.get(key)
    try:
        found = np.asarray(given if given is not None else [])
    except ValueError:  # lists of several lengths
        found = np.zeros(0, object)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        raise FormatError(f"{checkpoint.path}: {PREFIX}{key} is {given!r:.100}; expected a list of whole numbers.")
    return found.astype(np.int64)


def names(checkpoint: Checkpoint, metadata: Mapping[str, Any], key: str) -> list[str]:
    found = metadata.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise FormatError(f"{checkpoint.path}: {PREFIX}{key} is {found!r:.100}; expected a list of names.")
    return found
