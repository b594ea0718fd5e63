"""YaRN, as the Bonsai models have it, against the formulas of its paper written one number at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from bitnet import formats
from bitnet.convert.folder import write_folder

ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
QWEN3 = tiny.LLAMA | tiny.WIDE | {"model_type": "qwen3", "rope_scaling": ROPE}
OWN = ROPE | {"attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0}


def divisor(i: int, theta: float, d: int, factor: float, original: int, fast: float, slow: float) -> float:
    """Of frequency i: arXiv:2309.00071, equations 16 to 23, its ramp between whole dimensions as in its code."""

    def dimension(turns: float) -> float:
        return d * math.log(original / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = max(math.floor(dimension(fast)), 0), min(math.ceil(dimension(slow)), d - 1)
    ramp = min(max((i - low) / (high - low), 0.0), 1.0)
    return 1 / ((1 - ramp) + ramp / factor)


@pytest.mark.parametrize("rope", [ROPE, OWN, {k: v for k, v in ROPE.items() if k != "factor"}])
def test_divisors_and_scale_are_those_of_the_paper(rope: dict[str, Any]) -> None:
    config = tiny.config_of(tiny.Synthetic(QWEN3 | {"rope_scaling": rope}))
    fast, slow = rope.get("beta_fast", 32.0), rope.get("beta_slow", 1.0)
    expected = [divisor(i, 10000.0, 64, 4.0, 64, fast, slow) for i in range(32)]
    assert config.rope_factors == pytest.approx(expected, rel=1e-6)
    assert len({round(each, 6) for each in expected}) > 4  # a ramp, not a step
    assert config.rope.scale == pytest.approx(rope.get("attention_factor", 0.1 * math.log(4.0) + 1))


def test_queries_and_keys_are_turned_and_scaled() -> None:
    rope = tiny.config_of(tiny.Synthetic(QWEN3)).rope
    cos, sin = rope.angles(9)
    np.testing.assert_allclose(np.hypot(cos, sin), rope.scale, rtol=1e-6)
    slowest = rope.theta ** -(62 / 64) / 4
    np.testing.assert_allclose(np.arctan2(sin[8, 31], cos[8, 31]), 8 * slowest, rtol=1e-5)


@pytest.mark.parametrize("rope", [ROPE, OWN])
def test_both_kinds_of_file_keep_the_rule(rope: dict[str, Any], tmp_path: Path) -> None:
    """To the bit: the same divisors come of the numbers that each kind stores."""
    source = tiny.Synthetic(QWEN3 | {"rope_scaling": rope})
    expected = tiny.config_of(source)
    tiny.convert(source, tmp_path / "m.gguf", weights="tq2_0")
    with formats.open(tmp_path / "m.gguf") as checkpoint:
        assert "rope_freqs.weight" not in checkpoint.tensors()
        write_folder(checkpoint, tmp_path / "folder")
    for path in (tmp_path / "m.gguf", tmp_path / "folder"):
        with formats.open(path) as checkpoint:
            config = tiny.config_of(checkpoint)
        assert config.rope_factors == expected.rope_factors
        assert config.rope.scale == pytest.approx(expected.rope.scale, rel=1e-6)
