"""Products on several threads, each with many pieces of the work: pieces that run at once share nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="the backend tvm needs its extra: pip install 'bitnet[tvm]'")
pytest.importorskip("bitnet._core", reason="the C++ core is not built")

from bitnet.backends.tvm import TVM
from bitnet.backends.tvm_values import tensor
from bitnet.quant.tensor import TernaryTensor
from bitnet.tensorir import pack, ternary
from bitnet.tensorir.targets import TARGETS, runs_here
from bitnet.tensorir.ternary import Blocking, Shape

THREADS = 4
SHAPE = Shape(8 * 128 * THREADS + 5, 336)  # 8 pieces of 128 rows for a thread, then one that is not whole
REPEATS = 10
RUNNABLE = [name for name, target in TARGETS.items() if not target.gpu and runs_here(target)]


def differences(target: str, blocking: Blocking, count: int) -> tuple[int, int]:
    """Threads, and how many numbers of a product that is computed several times are wrong; some sums are extreme."""
    random = np.random.default_rng(SHAPE.n)
    given = TernaryTensor(random.integers(-1, 2, (SHAPE.n, SHAPE.k), np.int8), np.float32(1))
    given.codes[:64] = 1
    x = random.integers(-127, 128, (count, SHAPE.k), np.int8)
    x[0] = -127
    ops = TVM(TARGETS[target])
    product = ops.built(partial(ternary.product, SHAPE, ops.target.schedule, blocking), 1 if count == 1 else None)
    arguments = (tensor(x), tensor(x.sum(1, dtype=np.int32)[:, None]), tensor(pack.packed(given)))
    expected = x.astype(np.int64) @ given.codes.T.astype(np.int64)
    wrong = 0
    for _ in range(REPEATS):
        y = tensor(np.full((count, SHAPE.n), 1 << 30, np.int32))
        product(*arguments, y)
        wrong += int((y.numpy() != expected).sum())
    return len(list(Path("/proc/self/task").iterdir())), wrong


@pytest.fixture(scope="module")
def process() -> Iterator[ProcessPoolExecutor]:
    """One whose TVM has so many threads, wherever this machine would have it run them."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        patch.setenv("TVM_NUM_THREADS", str(THREADS))
        patch.setenv("TVM_BIND_THREADS", "0")
        pool.submit(int).result()
        yield pool


@pytest.mark.parametrize("target", RUNNABLE)
@pytest.mark.parametrize(
    ("count", "blocking"),
    [(1, Blocking()), (1, Blocking(groups=4, chunk=32)), (6, Blocking(tokens=4)), (6, Blocking(2, 2, 4, 0, 4))],
)
def test_threads_give_exact_products(process: ProcessPoolExecutor, target: str, count: int, blocking: Blocking) -> None:
    threads, wrong = process.submit(differences, target, blocking, count).result()
    assert threads >= THREADS
    assert wrong == 0
