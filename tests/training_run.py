"""A training run in a process of its own, to be killed or started twice: training_run.py OUT STEPS [key=value ...]"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitnet.train.batches import Rows
from bitnet.train.data import LEARNT, words_of
from bitnet.train.model import TernaryLM
from bitnet.train.optimizer import Rates
from bitnet.train.parallel import Group
from bitnet.train.quantizers import Recipe
from bitnet.train.schedule import Schedule
from bitnet.train.trainer import HeldOut, Plan, Trainer

DESCRIPTION = {
    "model_type": "bitnet",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
}


def counting(count: int, seed: int) -> Rows:
    """Windows that count upwards from a random number: easy to learn. Some rows are learnt only from a place on."""
    random = np.random.default_rng(seed)
    words = [words_of(int(first) + np.arange(16)) for first in random.integers(3, 48, count)]
    for row, start in zip(words[::3], random.integers(2, 14, count)):
        row[:start] &= ~LEARNT
    return Rows(np.stack(words), seed)


def trainer(out: Path, steps: int = 12, *, rates: Rates | None = None, **plan: Any) -> Trainer:
    settings = {"rows": 8, "log_every": 1, "save_every": 1e9, "evaluate_every": 1e9, **plan}
    model = TernaryLM(DESCRIPTION, Recipe(), dtype=torch.float32)
    return Trainer(
        model,
        counting(64, 0),
        Plan(out, steps=steps, **settings),
        rates=rates,
        schedule=Schedule(steps, blend=0.25),
        held_out=HeldOut(counting(16, 1), 16),
        group=Group.join(),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    given: dict[str, Any] = {key: float(value) for key, value in (pair.split("=") for pair in sys.argv[3:])}
    given |= {
        "rows": int(given.get("rows", 8)),
        "keep": int(given.get("keep", 2)),
        "rows_at_once": int(given.get("rows_at_once", 0)),
    }
    given |= {"rates": Rates("adamw") if given.pop("adamw", 0) else None}
    made = trainer(Path(sys.argv[1]), int(sys.argv[2]), **given)
    finished = made.run()
    made.group.leave()
    sys.exit(0 if finished else 3)
