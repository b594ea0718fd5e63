"""A small float model and a text, for what makes such models ternary."""

from __future__ import annotations

from typing import Any

import numpy as np
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
