"""What the project's own kernels compute: functions that call core/native/native.h, with the arguments that those of
rows.py, dense.py and attention.py have."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx import PrimFunc
from tvm.tirx.script.builder import ir as T

import bitnet._core as _core
from bitnet.errors import ParameterError
from bitnet.tensorir.attention import Heads, operands
from bitnet.tensorir.dense import TYPES
from bitnet.tensorir.function import Buffer, Function, f32, i64
from bitnet.tensorir.rows import COUNT
from bitnet.tensorir.ternary import BYTES, Shape

NAME = "libbitnet_native.so"
MOST = 3  # matrices that share an input
ACTIVATIONS = {"silu": 0, "relu2": 1, "gelu": 2}  # Activation of core/kernels/kernels.h
DTYPES = {"F32": 0, "F16": 1, "BF16": 2}  # DType of core/kernels/kernels.h


def path() -> Path:
    return Path(_core.__file__).parent / NAME


def exists() -> bool:
    """Whether this machine's library was built."""
    return path().exists()


@lru_cache
def load() -> ctypes.CDLL:
    """Its functions, for all code of this process; ParameterError where it was not built."""
    if not exists():
        raise ParameterError(f"{path()} is missing.", "Install bitnet again, or take --kernels tvm.")
    return ctypes.CDLL(str(path()), ctypes.RTLD_GLOBAL)


def set_threads(count: int) -> None:
    if exists():
        load().bitnet_set_threads(ctypes.c_int64(count))


def ternary(shapes: Sequence[Shape], count: COUNT) -> PrimFunc:
    """x (T, k), then weights and scales of each matrix -> y (T, n) of each. They differ in n at most."""
    first = shapes[0]
    with Function("native_ternary") as f:
        tokens = f.size("t", count)
        x = f.tensor("x", (tokens, first.k))
        inputs = [
            (
                f.tensor(f"weights{i}", (shape.row_groups, shape.blocks * BYTES), "uint8"),
                f.tensor(f"scales{i}", shape.scales),
            )
            for i, shape in enumerate(shapes)
        ]
        outputs = [f.tensor(f"y{i}", (tokens, shape.n)) for i, shape in enumerate(shapes)]
        fields = [i64(first.k), i64(first.group), i64(first.per_row), i64(len(shapes))]
        matrices: list[object] = []
        for i in range(MOST):
            own = min(i, len(shapes) - 1)
            weights, scales = inputs[own]
            matrices += [weights.data, scales.data, i64(shapes[own].n), outputs[own].data]
        call("bitnet_ternary", x, tokens, *fields, *matrices)
    return f.result


def dense(n: int, k: int, dtype: str, count: COUNT) -> PrimFunc:
    """x (T, k) times w (n, k) -> (T, n)."""
    with Function("native_dense") as f:
        tokens = f.size("t", count)
        x, w = f.tensor("x", (tokens, k)), f.tensor("w", (n, k), TYPES[dtype])
        y = f.tensor("y", (tokens, n))
        call("bitnet_dense", x, tokens, i64(k), w.data, i64(n), i64(DTYPES[dtype]), y.data)
    return f.result


def head(n: int, k: int, dtype: str, count: COUNT) -> PrimFunc:
    """x (S, k), w (n, k), its screen() and how many logits each row needs (S,) -> y (S, n)."""
    with Function("native_head") as f:
        rows = f.size("t", count)
        x, w = f.tensor("x", (rows, k)), f.tensor("w", (n, k), TYPES[dtype])
        screen, top = f.tensor("screen", (screen_bytes(n, k),), "uint8"), f.tensor("top", (rows,), "int32")
        y = f.tensor("y", (rows, n))
        call("bitnet_head", x, rows, i64(k), w.data, i64(n), i64(DTYPES[dtype]), screen.data, top.data, y.data)
    return f.result


def rms_norm(width: int, d: int, eps: float, count: COUNT) -> PrimFunc:
    with Function("native_rms_norm") as f:
        tokens = f.size("t", count)
        x, weight, y = f.tensor("x", (tokens, width)), f.tensor("weight", (d,)), f.tensor("y", (tokens, width))
        call("bitnet_rms_norm", x, tokens, i64(width), weight.data, i64(d), f32(eps), y.data)
    return f.result


def rope(width: int, head_dim: int, rotary: int, interleaved: bool, count: COUNT) -> PrimFunc:
    with Function("native_rope") as f:
        tokens, positions = f.size("t", count), f.size("p")
        x, at = f.tensor("x", (tokens, width)), f.tensor("at", (tokens,), "int32")
        cos, sin = (f.tensor(name, (positions, rotary // 2)) for name in ("cos", "sin"))
        y = f.tensor("y", (tokens, width))
        sizes = (i64(positions), i64(rotary // 2), i64(head_dim), i64(interleaved))
        call("bitnet_rope", x, tokens, i64(width), at.data, cos.data, sin.data, *sizes, y.data)
    return f.result


def gate(width: int, act: str, count: COUNT) -> PrimFunc:
    with Function("native_gate") as f:
        tokens = f.size("t", count)
        g, u, y = (f.tensor(name, (tokens, width)) for name in "guy")
        call("bitnet_gate", g, tokens, i64(width), u.data, i64(ACTIVATIONS[act]), y.data)
    return f.result


def add(width: int, count: COUNT) -> PrimFunc:
    with Function("native_add") as f:
        tokens = f.size("t", count)
        x, y, out = (f.tensor(name, (tokens, width)) for name in ("x", "y", "out"))
        call("bitnet_add", x, tokens, i64(width), y.data, out.data)
    return f.result


IN_PLACE = (rms_norm, rope, gate, add)  # which may write over what they read


def on_huge_pages(weights: Buffer) -> None:
    T.evaluate(T.call_extern("int32", "bitnet_on_huge_pages", weights.data, i64(weights.shape[0])))


def screen_bytes(n: int, k: int) -> int:
    function = load().bitnet_screen_bytes
    function.restype = ctypes.c_int64
    return int(function(ctypes.c_int64(n), ctypes.c_int64(k)))


def screen(w: NDArray[Any], n: int, k: int, dtype: str) -> NDArray[np.uint8]:
    """What lets `head` read less of w (n, k)."""
    found = np.zeros(screen_bytes(n, k), np.uint8)
    sizes = map(ctypes.c_int64, (n, k, DTYPES[dtype]))
    load().bitnet_screen(w.ctypes.data_as(ctypes.c_void_p), *sizes, found.ctypes.data_as(ctypes.c_void_p))
    return found


def attention(heads: Heads, count: COUNT) -> PrimFunc:
    """As tensorir.attention has it, for a head_dim that is a multiple of 16."""
    with Function("native_attention") as f:
        q, k, v, positions, sequences, tables, layer, cache, y = operands(f, heads, count)
        places = (positions.data, sequences.data, tables.data, *tables.shape, layer.data, cache.data, cache.shape[0])
        sizes = (heads.layers, heads.heads, heads.kv_heads, heads.head_dim, heads.window, int(heads.kv == "f16"))
        call("bitnet_attention", q, q.shape[0], k.data, v.data, *places, *map(i64, sizes), y.data)
    return f.result


def call(name: str, x: Buffer, tokens: object, *arguments: object) -> None:
    T.evaluate(T.call_extern("int32", name, x.data, i64(tokens), *arguments))
