"""The two roundings of BitNet b1.58: absmean for weights, absmax for activations.

Source: "The Era of 1-bit LLMs" (arXiv:2402.17764) and "BitNet b1.58 2B4T Technical Report" (arXiv:2504.12285).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bitnet.quant.tensor import TernaryTensor

SMALLEST = np.float32(1e-5)  # keeps an all-zero row or matrix from dividing by zero


def ternarize(weight: NDArray[np.float32]) -> TernaryTensor:
    """Round a float matrix (n, k) to one scale times {-1, 0, 1}: alpha = mean|W|, code = clip(round(W / alpha))."""
    scale = absmean(row_sums(weight), weight.shape[1])
    return TernaryTensor(ternary_codes(weight, scale), scale)


def row_sums(weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sum of |w| of each row, the same bits whether the rows come together or in parts."""
    return np.array([np.add.reduce(np.abs(row), dtype=np.float64) for row in weight], np.float64)


def absmean(sums: NDArray[np.float64], columns: int) -> NDArray[np.float32]:
    """The scale of a matrix whose row_sums these are, shape ()."""
    mean = np.float32(sums.sum() / (sums.size * columns)) if sums.size else np.float32(0)
    return np.asarray(np.maximum(mean, SMALLEST), np.float32)


def ternary_codes(weight: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int8]:
    """clip(round(weight / scale), -1, 1) without dividing.

    The quotient rounds to 1 where it is above 1/2, for ties go to even. As a float32 it is so wherever the weight is
    above scale / 2, which is exact: the next float32 is larger by more than 2^-25 of the scale, half a unit in the last
    place of the quotient.
    """
    half = np.float32(0.5) * scale
    codes = (weight > half).view(np.int8)
    codes -= (weight < -half).view(np.int8)
    return codes


PARTS = (1, 2, 3, 4, 6, 8, 12, 16)  # of rows, trained on as many devices with a scale on each
GROUPS = (256, 128, 64)  # columns that share a scale in files


def exact_ternary(weight: NDArray[np.float32]) -> TernaryTensor | None:
    """The ternary tensor that `weight` (n, k) equals already, or None: converters store s * {-1, 0, 1} as floats.

    It has one scale, else one for each row, else one for each of a few equal parts or of the usual groups of a row. A
    matrix of zeros says nothing.
    """
    sizes, k = np.abs(weight), weight.shape[1]
    if not sizes.any():
        return None
    widths = [k, *(w for w in (*(k // parts for parts in PARTS), *GROUPS) if w and k % w == 0 and w % 16 == 0)]
    for width in dict.fromkeys(widths):
        if level_of_each(sizes[:1], width) is None:  # which is where floats end, after one row
            continue
        scales = level_of_each(sizes, width)
        if scales is not None:
            return TernaryTensor(np.sign(weight).astype(np.int8), fewest(scales))
    return None


def level_of_each(sizes: NDArray[np.float32], width: int) -> NDArray[np.float32] | None:
    """The one value (n, k / width) that the sizes of each group of columns have beside 0; None where one has more."""
    groups = sizes.reshape(len(sizes), -1, width)
    tops: NDArray[np.float32] = groups.max(axis=2)
    return tops if ((groups == tops[:, :, None]) | (groups == 0)).all() else None


def fewest(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales (n, groups), where 0 stands for no weights at all, of shape () or (n,) where these say the same."""
    levels = scales[scales > 0]
    if (levels == levels[0]).all():
        return np.asarray(levels[0])
    return scales[:, 0] if scales.shape[1] == 1 else scales


def quantize_activations(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each row of x (T, k) to int8 and return the codes with the multiplier s (T,): code = round(x * s).

    s = 127 / max|row|; ties go to even, as in IEEE arithmetic.
    """
    scale = np.float32(127) / np.maximum(np.abs(x).max(axis=-1), SMALLEST)
    with np.errstate(invalid="ignore"):  # a row with a NaN has codes of no meaning, and a multiplier that says so
        codes = np.clip(np.rint(x * scale[:, None]), -128, 127).astype(np.int8)
    return codes, scale.astype(np.float32)
