"""Tiny folders written by `transformers` give the logits and tokens that it recorded: see make_goldens.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("transformers/*/golden.npz"))
TOLERANCE = 2e-5  # on logits of standard deviation 2.5; see tests/live/test_transformers.py


def test_the_goldens_are_there() -> None:
    assert len(FOLDERS) == 10


@pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])
def test_a_folder_gives_the_recorded_logits_and_tokens(folder: Path) -> None:
    golden = np.load(folder / "golden.npz")
    prompt, tokens = golden["prompt"].tolist(), golden["tokens"].tolist()
    for backend, model in tiny.every_backend(lambda ops: tiny.load(folder, ops)).items():
        with tiny.isa(backend):
            exact = tiny.assert_same_logits(tiny.logits(model, prompt), golden["logits"], TOLERANCE, backend)
            if exact:
                assert tiny.greedy(model, prompt, len(tokens)) == tokens, backend
