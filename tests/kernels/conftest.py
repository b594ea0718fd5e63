"""Kernel tests change the instruction set and the number of threads; each test gets back what it found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bitnet import _core


@pytest.fixture(autouse=True)
def same_machine() -> Iterator[None]:
    isa, threads = _core.isa(), _core.threads()
    yield
    _core.set_isa(isa)
    _core.set_threads(threads)


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> str:
    """Each instruction set that this CPU can run, in use."""
    _core.set_isa(request.param)
    return request.param
