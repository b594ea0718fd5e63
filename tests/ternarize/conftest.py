"""The float model as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from float_models import FLOAT, float_model


@pytest.fixture(scope="session")
def float_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.convert(float_model(), tmp_path_factory.mktemp("float") / "float.gguf")


@pytest.fixture(scope="session")
def wide_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With rows that every type takes."""
    return tiny.convert(float_model(FLOAT | tiny.WIDE), tmp_path_factory.mktemp("wide") / "wide.gguf")


@pytest.fixture
def make() -> Callable[..., tiny.Synthetic]:
    return float_model
