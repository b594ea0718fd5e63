"""What is fastest is found by measuring, kept, and nothing that happens on the way breaks a compilation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tvm", reason="tuning needs its extra: pip install 'bitnet[tvm]'")
core = pytest.importorskip("bitnet._core", reason="the C++ core is not built")

from bitnet import backends
from bitnet.backends.base import Step
from bitnet.backends.tvm import TVM, Kernels
from bitnet.compile import tuning
from bitnet.compile.tuning import NATIVE, Database, Operator, Record, candidates, key_of, name_of, tune
from bitnet.errors import FormatError, ParameterError
from bitnet.quant.tensor import TernaryTensor
from bitnet.tensorir import native
from bitnet.tensorir.targets import TARGETS, host
from bitnet.tensorir.ternary import Blocking, Shape

OPERATORS = [Operator(Shape(64, 256), 1), Operator(Shape(40, 100), None)]

pytestmark = pytest.mark.skipif(not native.exists(), reason="the library of the core's kernels is not built")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tuning") / "database.json"
    tune(OPERATORS, host(), Database(path), 2)
    return path


def test_every_way_is_exact_and_the_best_is_kept(tuned: Path) -> None:
    database = Database(tuned)
    for operator in OPERATORS:
        record = database.record(key_of(operator, host(), core.threads()))
        assert len(record.seconds) == 3
        assert None not in record.seconds.values()
        assert record.best == min(record.again, key=record.again.__getitem__)


def test_what_is_known_is_not_measured_again(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(tuning, "measured", forbidden)
    found = tune(OPERATORS, host(), Database(tuned), 2)
    assert all(record.best for record in found.values())


def test_a_search_goes_on_where_it_was_cut_off(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    measure = tuning.measured

    def watched(operator: Operator, target: Any, ways: Any, left: float) -> Any:
        asked.append(list(ways))
        return measure(operator, target, ways, left)

    monkeypatch.setattr(tuning, "measured", watched)
    tune(OPERATORS[:1], host(), Database(tuned), 3)
    third = [name_of(way) for way in candidates(OPERATORS[0], host().schedule)][2]
    assert asked[0] == [third]


def test_where_time_is_over_the_cores_kernel_stands_in(tmp_path: Path) -> None:
    (record,) = tune(OPERATORS[:1], host(), Database(tmp_path / "d.json"), 4, operator_seconds=0).values()
    assert (record.best, record.blocking) == (NATIVE, None)
    assert "time" in record.said(True)


def test_a_way_that_kills_its_process_fails_alone(tmp_path: Path) -> None:
    record, good = Record(), name_of(Blocking())
    broken = json.dumps({"groups": 0})
    tuning.settle(record, OPERATORS[0], host(), [broken, good], 120.0, lambda what: None)
    assert record.seconds[broken] is None
    assert record.seconds[good] is not None
    assert record.best in (good, NATIVE)


def test_another_machine_is_not_measured_here(tmp_path: Path) -> None:
    other = TARGETS["aarch64" if host().machine == "x86_64" else "x86-64-v3"]
    with pytest.raises(ParameterError, match=r"host"):
        tune(OPERATORS, other, Database(tmp_path / "d.json"), 1)


@pytest.mark.parametrize("text", ["", "[]", '{"a": {"nonsense": 1}}', "\0"])
def test_a_broken_database_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"d\.json"):
        Database(path)


@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("scales", [(), (48,), (48, 4)])
def test_the_cores_kernels_called_from_compiled_code_give_its_bits(tokens: int, scales: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    x = random.standard_normal((tokens, 256), np.float32)
    weights = [
        TernaryTensor(random.integers(-1, 2, (48, 256), np.int8), random.uniform(0.1, 1, scales).astype(np.float32))
        for _ in range(4)
    ]
    ops, cpu = TVM(kernels=Kernels(native=True, others=True)), backends.make("cpu")
    ours, theirs = (each.linear(x, *map(each.put, weights)) for each in (ops, cpu))
    np.testing.assert_array_equal(np.stack(ours), np.stack(theirs))


@pytest.mark.parametrize("window", [0, 20])
def test_the_cores_attention_called_from_compiled_code_gives_its_bits(window: int) -> None:
    random, heads, kv_heads, dim = np.random.default_rng(2), 4, 2, 32
    ops, cpu = TVM(kernels=Kernels(native=True, others=True)), backends.make("cpu")
    caches = [each.new_cache(2, 24, kv_heads, dim, "f16") for each in (ops, cpu)]
    tables = np.array([[5, -1], [3, 1], [7, 2]], np.int32)
    for starts, positions in (([0, 5, 5, 25], [*range(5), *range(20)]), ([0, 1, 2, 3], [5, 0, 20])):
        count = len(positions)
        q, k, v = (random.standard_normal((count, n * dim), np.float32) for n in (heads, kv_heads, kv_heads))
        at, bounds = np.array(positions, np.int32), np.array(starts, np.int32)
        step = Step(np.zeros(count, np.int32), at, bounds, np.zeros(1, np.int32), tables)
        ours, theirs = (
            each.attention(q, k, v, cache, 1, step, dim, window) for each, cache in zip((ops, cpu), caches, strict=True)
        )
        np.testing.assert_array_equal(ours, theirs)
