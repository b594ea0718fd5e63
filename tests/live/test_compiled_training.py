"""torch.compile changes what a step costs, not what it learns."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from training_run import trainer


def test_a_compiled_step_has_the_loss_and_the_gradients_of_an_eager_one(tmp_path: Path) -> None:
    eager, compiled = (trainer(tmp_path / str(way), compile=way) for way in (False, True))
    for run in (eager, compiled):
        run.schedule.blend = 0.0
        run.module.zero_grad = lambda set_to_none=True: None
    assert compiled.train_step() == pytest.approx(eager.train_step(), abs=1e-4)
    for (name, a), b in zip(eager.module.named_parameters(), compiled.module.parameters(), strict=True):
        # An activation that rounds the other way moves a gradient by one of its 255 levels.
        torch.testing.assert_close(b.grad, a.grad, rtol=2e-2, atol=2e-3, msg=name)
