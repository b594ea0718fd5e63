"""Tensors as llama.cpp stores them and reads them again. See make_goldens.py.

python record_tensor_types.py OUT.npz

The library that llama-cpp-python brings along is called directly: ggml_quantize_chunk, and to_float of the type's
traits. For each type the file holds TYPE.bytes (rows, bytes) and TYPE.values (rows, k) float32.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TERNARY = {"TQ1_0": 34, "TQ2_0": 35, "Q1_0": 41, "Q2_0": 42}
FLOAT = {"Q4_0": 2, "Q5_0": 6, "Q8_0": 8, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
ROWS, K = 3, 512


class Traits(ctypes.Structure):
    """struct ggml_type_traits."""

    _fields_ = [
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    ]


def library() -> Any:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p
    ]  # fmt: skip
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    return ggml


def quantize(ggml: Any, number: int, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows of floats as the bytes of the type `number`."""
    rows, k = values.shape
    traits = ggml.ggml_get_type_traits(number).contents
    data = np.zeros((rows, k // traits.blck_size * traits.type_size), np.uint8)
    values = np.ascontiguousarray(values)
    size = ggml.ggml_quantize_chunk(number, values.ctypes.data, data.ctypes.data, 0, rows, k, None)
    assert size == data.size
    return data


def dequantize(ggml: Any, number: int, data: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    values = np.empty((len(data), k), np.float32)
    ggml.ggml_get_type_traits(number).contents.to_float(data.ctypes.data, values.ctypes.data, values.size)
    return values


def sample(name: str) -> NDArray[np.float32]:
    """Weights with outliers and an empty block; for a ternary type with a scale for each row."""
    random = np.random.default_rng(len(name))
    if name in TERNARY:
        codes = random.choice([-1, 1] if name == "Q1_0" else [-1, 0, 1], (ROWS, K))
        return (codes * np.array([[0.5], [1.25], [0.0371]])).astype(np.float32)
    values = random.standard_normal((ROWS, K)) * np.exp(random.standard_normal((ROWS, 1)))
    values[1, 256:] = 0
    values[2, ::37] *= 9
    return values.astype(np.float32)


def main() -> None:
    ggml, found = library(), {}
    for name, number in {**TERNARY, **FLOAT}.items():
        data = quantize(ggml, number, sample(name))
        found |= {f"{name}.bytes": data, f"{name}.values": dequantize(ggml, number, data, K)}
    np.savez_compressed(sys.argv[1], **found)


if __name__ == "__main__":
    main()
