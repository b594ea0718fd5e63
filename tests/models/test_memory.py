"""A model that cannot fit is refused before it takes any memory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from bitnet import BitNet
from bitnet.errors import ResourceError
from bitnet.formats.checkpoint import TensorInfo
from bitnet.models import memory


def test_a_model_too_large_is_refused_with_both_numbers(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(ResourceError, match=r"need 0\.00 GiB of memory; 0\.00 GiB are free") as caught:
        BitNet(tiny_gguf)
    assert "--force" in caught.value.hint


def test_force_loads_it_all_the_same(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with BitNet(tiny_gguf, force=True) as model:
        assert model.llm.ctx_size


def test_the_screen_of_the_head_is_counted(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitnet._core")
    asked: list[int] = []
    loading = import_module("bitnet.models.load")
    monkeypatch.setattr(loading, "check_memory", lambda path, needed, free: asked.append(needed))
    for head in ("full", "screen"):
        with BitNet(tiny_gguf, head=head):
            pass
    full, screened = asked
    assert screened - full == 320 * (256 + 12)


def test_masters_count_as_what_they_become() -> None:
    info = TensorInfo("w", (1024, 4096), "BF16", 8 << 20)
    assert memory.resident_bytes(info, ternary=True) == 1 << 20
    assert memory.resident_bytes(info, ternary=False) == 8 << 20


def test_where_the_system_does_not_tell_everything_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet.machine.memory.available_bytes", lambda: None)
    memory.check_memory(Path("model"), 1 << 60)
    assert memory.fits(1 << 60)


def test_a_control_group_sets_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet.machine.memory.available_bytes", lambda: 1000)
    assert memory.fits(1000) and not memory.fits(1001)
