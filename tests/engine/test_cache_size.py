"""The cache of keys and values is as large as the memory allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet import BitNet
from bitnet.engine import EngineConfig, cache_size
from bitnet.engine.cache_size import block_bytes, fitted
from bitnet.errors import ResourceError
from bitnet.models.decoder import Config

MODEL = Config(2560, 6912, 30, 20, 5, 128, 128256, 4096)  # 2B-4T
BLOCK = 16 * 30 * 2 * 5 * 128 * 2


def memory_for(blocks: int) -> int:
    return int(blocks * BLOCK / cache_size.SHARE) + 1


def test_bytes_of_a_block() -> None:
    assert block_bytes(MODEL, "f16") == BLOCK
    assert block_bytes(MODEL, "f32") == 2 * BLOCK
    assert block_bytes(MODEL, "int8") == 16 * 30 * 2 * 5 * (128 + 4)


def test_a_cache_that_fits_is_as_large_as_asked_for() -> None:
    for config in (EngineConfig(), EngineConfig(kv_blocks=2048), EngineConfig(ctx_size=0)):
        assert fitted(config, MODEL, memory_for(2048)) is config


def test_sequences_share_what_there_is() -> None:
    assert fitted(EngineConfig(), MODEL, memory_for(2047)).kv_blocks == 2047
    assert fitted(EngineConfig(), MODEL, memory_for(256)).kv_blocks == 256
    assert fitted(EngineConfig(kv="f32"), MODEL, memory_for(2048)).kv_blocks == 1024


def test_the_models_own_context_shrinks() -> None:
    assert fitted(EngineConfig(ctx_size=0), MODEL, memory_for(10)).kv_blocks == 10
    assert fitted(EngineConfig(ctx_size=0), MODEL, 1).kv_blocks == 1


def test_a_context_that_was_asked_for_and_does_not_fit_is_refused_with_what_does() -> None:
    with pytest.raises(ResourceError, match=r"context of 4096 tokens need 0\.29 GiB") as caught:
        fitted(EngineConfig(), MODEL, memory_for(255))
    assert str(255 * 16) in caught.value.hint and "--force" in caught.value.hint


def test_blocks_that_were_asked_for_and_do_not_fit_are_refused() -> None:
    with pytest.raises(ResourceError, match="300 blocks"):
        fitted(EngineConfig(kv_blocks=300), MODEL, memory_for(299))


def test_a_longer_context_than_the_models_counts_as_the_models() -> None:
    assert fitted(EngineConfig(ctx_size=1 << 20, max_sequences=1), MODEL, memory_for(256)).kv_blocks == 0


def test_where_the_system_does_not_tell_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_size, "available_bytes", lambda: None)
    assert fitted(EngineConfig(), MODEL).kv_blocks == 0


def test_a_model_runs_with_the_blocks_that_fit(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitnet._core")
    with BitNet(tiny_gguf, ctx_size=64) as model:
        expected = model.generate(["ab", "cd", "ef"], 20, temperature=0)
        each = block_bytes(model.llm.model.config, "f16")
    monkeypatch.setattr(cache_size, "available_bytes", lambda: int(5 * each / cache_size.SHARE) + 1)
    with BitNet(tiny_gguf, ctx_size=64) as model:
        assert model.llm.scheduler.pool.count == 5
        assert model.generate(["ab", "cd", "ef"], 20, temperature=0) == expected
    monkeypatch.setattr(cache_size, "available_bytes", lambda: each)
    with pytest.raises(ResourceError, match="context of 64"):
        BitNet(tiny_gguf, ctx_size=64)
    with BitNet(tiny_gguf, ctx_size=64, force=True) as model:
        assert model.llm.scheduler.pool.count == 32
