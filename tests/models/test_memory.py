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
    monkeypatch.setattr(loading, "check_memory", lambda path, needed: asked.append(needed))
    for head in ("full", "screen"):
        with BitNet(tiny_gguf, head=head):
            pass
    full, screened = asked
    assert screened - full == 320 * (256 + 12)


def test_masters_count_as_what_they_become() -> None:
    info = TensorInfo("w", (1024, 4096), "BF16", 8 << 20)
    assert memory.resident_bytes(info, ternary=True) == 1 << 20
    assert memory.resident_bytes(info, ternary=False) == 8 << 20


@pytest.mark.parametrize(
    "limit, usage",
    [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ],
)
def test_a_control_group_sets_the_limit(tmp_path: Path, limit: str, usage: str) -> None:
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text("1000000\n")
    (tmp_path / usage).write_text("900000\n")
    (tmp_path / limit).with_name("memory.stat").write_text("anon 5\ninactive_file 300000\n")
    assert memory.cgroup_available(tmp_path) == [400000]


def test_no_limit_in_the_control_group_is_none(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert memory.cgroup_available(tmp_path) == []
