"""The self-test passes where the kernels are right, and fails where any one of them is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

_core = pytest.importorskip("bitnet._core")

from bitnet.backends.packing import BITS
from bitnet.machine.selftest import OPERATIONS, PACKINGS, self_test


class Broken:
    """The core with one function that answers wrongly; only on instruction set `isa` where one is named."""

    def __init__(self, name: str, wrong: Any, isa: str = "") -> None:
        self._name, self._wrong, self._isa = name, wrong, isa

    def __getattr__(self, name: str) -> Any:
        right = getattr(_core, name)
        if name != self._name or self._isa not in ("", _core.isa()):
            return right
        return lambda *arguments, **named: self._wrong(right(*arguments, **named))


def one_more(result: Any) -> Any:
    result[-1, -1] += 1
    return result


def test_every_instruction_set_of_this_cpu_is_tested_and_right() -> None:
    before = _core.isa()
    checks = self_test()
    assert [(c.isa, c.operation) for c in checks] == [(i, o) for i in _core.isas() for o in OPERATIONS]
    assert [c for c in checks if not c.passed] == []
    assert _core.isa() == before


WRONGS = [
    ("ternary_matmul_i32", one_more, {"ternary products", "largest sums"}),
    ("quantize", lambda found: (one_more(found[0]), found[1]), {"quantisation"}),
    ("quantize", lambda found: (found[0], np.nextafter(found[1], np.float32(0))), {"quantisation"}),
    ("linear", lambda found: [one_more(found[0]), *found[1:]], {"scales", "dense products"}),
    ("embed", one_more, {"dense products"}),
    ("head", lambda found: (np.full_like(found[0], -np.inf), found[1]), {"screened head"}),
    ("head", lambda found: (found[0] * np.float32(1.01), found[1]), {"screened head"}),
    ("attention", one_more, {"attention"}),
    ("rms_norm", one_more, {"norms, gates, rope"}),
    ("rope", lambda found: -found, {"norms, gates, rope"}),
    ("gate", lambda found: np.full_like(found, np.nan), {"norms, gates, rope"}),
]


@pytest.mark.parametrize("name, wrong, operations", WRONGS)
def test_a_wrong_result_is_found(name: str, wrong: Any, operations: set[str]) -> None:
    checks = self_test(Broken(name, wrong))
    assert {c.operation for c in checks if not c.passed} == operations
    assert all(c.failure for c in checks if c.operation in operations)


@pytest.mark.parametrize("isa", _core.isas())
def test_the_instruction_set_that_is_wrong_is_named(isa: str) -> None:
    checks = self_test(Broken("ternary_matmul_i32", one_more, isa))
    assert {(c.isa, c.operation) for c in checks if not c.passed} == {
        (isa, "ternary products"),
        (isa, "largest sums"),
    }
    assert "in place of" in next(c.failure for c in checks if not c.passed)


def test_every_packing_is_tested() -> None:
    assert set(PACKINGS) == set(BITS)


def test_an_instruction_set_with_other_bits_is_found_though_it_is_nearly_right() -> None:
    last = _core.isas()[-1]
    checks = self_test(Broken("rms_norm", lambda found: np.nextafter(found, np.float32(0)), last))
    assert [(c.isa, c.operation, c.failure) for c in checks if not c.passed] == (
        [(last, "norms, gates, rope", f"other bits than on {_core.isas()[0]}")] if len(_core.isas()) > 1 else []
    )


def test_an_operation_that_raises_has_failed_and_the_instruction_set_is_restored() -> None:
    def refuse(result: Any) -> Any:
        raise RuntimeError("illegal")

    before = _core.isa()
    checks = self_test(Broken("attention", refuse))
    assert {(c.operation, c.failure) for c in checks if not c.passed} == {("attention", "illegal")}
    assert _core.isa() == before
