"""A small float model, as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bitnet.quant.tensor import DenseTensor

FLOAT = {k: v for k, v in tiny.LLAMA.items() if k != "quantization_config"} | {"intermediate_size": 128}
TEXT = "the rain in the den and the thin ant within the inner den ran in the end; " * 12


def float_model(metadata: dict[str, Any] = FLOAT) -> tiny.Synthetic:
    """Projections of float16 numbers with longer tails than the usual thresholds are made for."""
    source = tiny.Synthetic(metadata)
    random = np.random.default_rng(5)
    for name, weight in source.weights.items():
        if name.endswith("_proj.weight"):
            values = random.laplace(size=weight.shape) * weight.shape[1] ** -0.5
            source.weights[name] = DenseTensor(values.astype(np.float16), "F16")
    return source


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
