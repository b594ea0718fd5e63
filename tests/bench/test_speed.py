"""The measurements: what is run, counted and hashed."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet import backends, models
from bitnet.backends.base import Step
from bitnet.bench.speed import (
    Run,
    Sample,
    Test,
    kv_bytes,
    logits_hash,
    multiply_adds,
    screen_bytes,
    stored_bytes,
    token_ids,
    weight_bytes,
)
from bitnet.engine.runner import Runner
from bitnet.models import Decoder
from bitnet.models.synthetic import SyntheticCheckpoint


def test_the_name_is_llama_benchs() -> None:
    names = [test.name for test in (Test(512, 0), Test(0, 128), Test(0, 128, 512))]
    assert names == ["pp512", "tg128", "tg128 @ d512"]


def test_token_ids_are_fixed_and_in_the_vocabulary() -> None:
    ids = token_ids(1000, 320)
    assert ids[:4] == [197, 75, 273, 151] and set(ids) <= set(range(320))


@pytest.mark.parametrize("test", [Test(24, 0), Test(0, 5), Test(0, 5, 19), Test(8, 0, 16), Test(6, 3)])
@pytest.mark.parametrize("chunk", [5, 512])
def test_the_last_logits_are_those_of_the_whole_text(tiny_model: Decoder, test: Test, chunk: int) -> None:
    c = tiny_model.config
    cache = tiny_model.ops.new_cache(c.num_hidden_layers, 8, c.num_key_value_heads, c.head_dim, "f32")
    whole = tiny_model(Step.whole(token_ids(test.positions, c.vocab_size), want=[test.positions - 1]), cache)[0]
    sample = timed(tiny_model, test, chunk, "f32")
    assert len(sample.token_ns) == test.n_gen and 0 < sample.first_ns <= sample.ns
    assert sum(sample.token_ns) + (sample.first_ns if test.n_prompt else 0) == sample.ns
    assert sample.logits_hash == logits_hash(whole) or test.n_gen or chunk == 5  # sums of another order


def timed(model: Decoder, test: Test, chunk: int, kv: str) -> Sample:
    return Run(Runner(model, 8, kv), 8, chunk).timed(test)


def test_bytes_of_the_cache_are_those_that_a_token_reads(tiny_model: Decoder) -> None:
    c, test = tiny_model.config, Test(0, 1, 99)  # sees 100 positions
    vectors = 100 * c.num_hidden_layers * 2 * c.num_key_value_heads
    found = [kv_bytes(tiny_model, test, kv) for kv in ("f32", "f16", "int8")]
    assert found == [vectors * 4 * c.head_dim, vectors * 2 * c.head_dim, vectors * (c.head_dim + 4)]


def test_the_hash_shows_the_smallest_difference() -> None:
    logits = np.linspace(-1, 1, 50, dtype=np.float32)
    other = logits.copy()
    other[7] = np.nextafter(other[7], np.float32(2))
    assert logits_hash(logits) == logits_hash(logits.copy()) != logits_hash(other)


@pytest.mark.parametrize("test", [Test(24, 0), Test(0, 5, 19)])
def test_a_screened_head_is_hashed_in_full_and_counted_as_read(test: Test) -> None:
    pytest.importorskip("bitnet._core")
    full, screened = (
        models.load(SyntheticCheckpoint("tiny"), backends.make("cpu"), head=head) for head in ("full", "screen")
    )
    assert timed(full, test, 512, "f16").logits_hash == timed(screened, test, 512, "f16").logits_hash
    saved = stored_bytes(full.weights["lm_head"]) - screen_bytes(screened)
    assert weight_bytes(full) - weight_bytes(screened) == saved > 0


def test_bytes_of_a_token_are_all_weights_but_the_embedding_and_the_cache_so_far(tiny_model: Decoder) -> None:
    c = tiny_model.config
    kv = c.num_key_value_heads * c.head_dim
    layer = c.hidden_size * (2 * c.hidden_size + 2 * kv + 3 * c.intermediate_size)
    assert weight_bytes(tiny_model) > c.num_hidden_layers * layer // 4
    assert weight_bytes(tiny_model) >= 2 * c.vocab_size * c.hidden_size  # the tied table is read as the head
    assert kv_bytes(tiny_model, Test(0, 3, 10), "f16") == 12 * 2 * 2 * c.num_key_value_heads * c.head_dim * 2
    assert multiply_adds(c) == c.num_hidden_layers * layer


def test_a_depth_that_is_in_the_cache_is_not_read_again(tiny_model: Decoder) -> None:
    runner, test = Runner(tiny_model, 8, "f32"), Test(0, 3, 40)
    hashes = [Run(runner, 8, 512, known).timed(test).logits_hash for known in (0, test.positions, 17)]
    assert len(set(hashes)) == 1
    steps: list[int] = []
    compute = runner.compute

    def counted(step: Step) -> object:
        steps.append(len(step.ids))
        return compute(step)

    runner.compute = counted
    Run(runner, 8, 512, test.positions).timed(test)
    assert steps == [1, 1, 1]
