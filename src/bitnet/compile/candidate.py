"""One product, computed in several ways and timed: what tuning runs in a process of its own, which may crash.

python -m bitnet.compile.candidate < job.json prints a line of JSON for each way, in their order.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from bitnet.backends.compiled import use_threads
from bitnet.backends.tvm import TVM, Kernels
from bitnet.backends.tvm_values import Ternary, tensor
from bitnet.quant.tensor import TernaryTensor
from bitnet.tensorir import native, pack, rows, ternary
from bitnet.tensorir.targets import target_of
from bitnet.tensorir.ternary import Blocking, Shape

TOKENS = 64  # of a product with several
STREAMED = 64 << 20  # bytes of copies of a weight that take turns, as the layers of a model do
MOST_COPIES = 24
SECONDS, ROUNDS = 0.04, 5  # of a timing, and how often it is repeated


def main() -> None:
    job = json.load(sys.stdin)
    for result in results(job):
        print(json.dumps(result), flush=True)


def results(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Seconds of each of job["ways"], a blocking's fields or None for the core's kernel; or "inexact"."""
    shape, count = Shape(**job["shape"]), job["count"]
    use_threads(job["threads"])
    random = np.random.default_rng(shape.n * 31 + shape.k)
    codes = random.integers(-1, 2, (shape.n, shape.k), np.int8)
    x = random.integers(-127, 128, (count or TOKENS, shape.k)).astype(np.float32)
    x[:, 0] = 127  # the largest: every multiplier is 1, and every result a whole number
    scales = np.ones((shape.n, shape.groups) if shape.group else shape.n if shape.per_row else (), np.float32)
    given = TernaryTensor(codes, scales)
    weights = pack.packed(given)
    copies = max(1, min(MOST_COPIES, STREAMED // weights.nbytes))
    packed = [Ternary(given.shape, shape, tensor(weights), tensor(pack.scales(given))) for _ in range(copies)]
    expected = x.astype(np.int64) @ codes.T.astype(np.int64)
    for way in job["ways"]:
        run, y = product(job["target"], shape, count, way, tensor(x), packed)
        run(0)
        if not (y.numpy() == expected).all():
            yield {"inexact": True}
        else:
            yield {"seconds": seconds(run, copies)}


def product(
    target: str, shape: Shape, count: int | None, way: Mapping[str, int] | None, x: Any, packed: list[Ternary]
) -> tuple[Callable[[int], Any], Any]:
    """A function that multiplies x with one of the copies, and where it leaves the result."""
    ops, t = TVM(target_of(target), Kernels(native=way is None)), int(x.shape[0])
    y = tensor(np.zeros((t, shape.n), np.float32))
    if way is None:
        function = ops.built(partial(native.ternary, (shape,)), count)
        return lambda i: function(x, packed[i].weights, packed[i].scales, y), y
    group = shape.group or shape.padded
    quantize = ops.built(partial(rows.quantize, shape.k, shape.padded, group), count)
    multiply = ops.built(partial(ternary.linear, shape, ops.target.schedule, Blocking(**way)), count)
    codes, sums = tensor(np.zeros((t, shape.padded), np.int8)), tensor(np.zeros((t, shape.groups), np.int32))
    multipliers = tensor(np.zeros(t, np.float32))

    def run(i: int) -> None:
        quantize(x, codes, sums, multipliers)
        multiply(codes, sums, packed[i].weights, packed[i].scales, multipliers, y)

    return run, y


def seconds(run: Callable[[int], Any], copies: int) -> float:
    """Of one call: the best of a few rounds."""
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < SECONDS or not calls:
        run(calls % copies)
        calls += 1
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for i in range(calls):
            run(i % copies)
        best = min(best, (time.perf_counter() - began) / calls)
    return best


if __name__ == "__main__":
    main()
