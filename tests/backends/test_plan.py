"""A captured model gives the bits that the model gives when its operations are called one by one."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny

from bitnet import backends
from bitnet.backends.base import BLOCK_SIZE, Step
from bitnet.errors import ParameterError
from bitnet.models import Decoder
from bitnet.quant.tensor import DenseTensor, TernaryTensor

_core = pytest.importorskip("bitnet._core")

MODELS = {
    "relu2": tiny.BITNET,
    "silu": tiny.SILU,
    "untied": tiny.BITNET | {"tie_word_embeddings": False},
    "llama": tiny.LLAMA | {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "head-dim": tiny.LLAMA | {"head_dim": 36, "num_key_value_heads": 4},
    "llama3-rope": tiny.LLAMA | {"rope_scaling": tiny.LLAMA3_ROPE},
    "odd": tiny.BITNET | {"hidden_size": 100, "intermediate_size": 270, "head_dim": 50, "vocab_size": 259},
    "one-layer": tiny.BITNET | {"num_hidden_layers": 1},
}
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26, 43, 38, 32, 79, 50, 28, 84, 19]
BLOCKS = 16


def dense_projections(source: tiny.Synthetic, every: int) -> tiny.Synthetic:
    """`source` with every so manyth projection in floats, of each type in turn."""
    kinds = ["F32", "F16", "BF16"]
    names = [name for name, weight in source.weights.items() if isinstance(weight, TernaryTensor)][::every]
    for i, name in enumerate(names):
        values, dtype = source.weights[name].dequantize(), kinds[i % 3]
        if dtype == "BF16":
            source.weights[name] = DenseTensor((values.view(np.uint32) >> 16).astype(np.uint16), dtype)
        else:
            source.weights[name] = DenseTensor(values.astype({"F32": np.float32, "F16": np.float16}[dtype]), dtype)
    return source


def grouped_scales(source: tiny.Synthetic) -> tiny.Synthetic:
    """`source` with a scale for every 32 columns in half of its projections, for every row in the others."""
    random = np.random.default_rng(5)
    for i, (name, weight) in enumerate(source.weights.items()):
        if isinstance(weight, TernaryTensor):
            n, k = weight.shape
            shape = (n, k // 32) if i % 2 else (n,)
            scales = random.uniform(0.1, 1, shape).astype(np.float32)
            source.weights[name] = TernaryTensor(weight.codes, scales)
    return source


def load(name: str) -> Decoder:
    if name == "dense":
        return tiny.load(dense_projections(tiny.Synthetic(tiny.LLAMA), 2), "cpu")
    if name == "all-dense":
        return tiny.load(dense_projections(tiny.Synthetic(tiny.LLAMA), 1), "cpu")
    if name == "scales":
        return tiny.load(grouped_scales(tiny.Synthetic(tiny.LLAMA)), "cpu")
    if name == "interleaved":
        model = tiny.load(tiny.Synthetic(tiny.LLAMA), "cpu")
        return type(model)(replace(model.config, rope_style="interleaved"), model.weights, model.ops)
    return tiny.load(tiny.Synthetic(MODELS[name]), "cpu")


ALL = [*MODELS, "dense", "all-dense", "scales", "interleaved"]


def steps(lengths: list[int], chunk: int, want: str) -> Iterator[Step]:
    """Sequences side by side, `chunk` tokens of each in a step; wanted are "all", "last" or "ends" of sequences."""
    blocks = [-(-length // BLOCK_SIZE) for length in lengths]
    order = list(np.random.default_rng(len(lengths)).permutation(BLOCKS)[: sum(blocks)])
    tables = np.full((len(lengths), max(blocks)), -1, np.int32)
    for row, count in zip(tables, blocks, strict=True):
        row[:count] = [order.pop() for _ in range(count)]
    for at in range(0, max(lengths), chunk):
        spans = [(b, at, min(at + chunk, length)) for b, length in enumerate(lengths) if at < length]
        starts = np.cumsum([0] + [end - start for _, start, end in spans]).astype(np.int32)
        wanted = {
            "all": range(starts[-1]),
            "last": starts[1:] - 1,
            "ends": [starts[i + 1] - 1 for i, (b, _, end) in enumerate(spans) if end == lengths[b]],
        }[want]
        yield Step(
            ids=np.array([(7 * p + 31 * b) % 250 for b, start, end in spans for p in range(start, end)], np.int32),
            positions=np.concatenate([np.arange(start, end, dtype=np.int32) for _, start, end in spans]),
            starts=starts,
            want=np.asarray(wanted, np.int32),
            block_tables=np.ascontiguousarray(tables[[b for b, _, _ in spans]]),
        )


class Pair:
    """A model called directly and its plan, each on a cache of its own."""

    def __init__(self, model: Decoder, kv: str = "f16") -> None:
        self.model = model
        self.cache, self.other = (tiny.new_cache(model, BLOCKS * BLOCK_SIZE, kv) for _ in range(2))
        self.plan = model.ops.compile(model, self.other)

    def assert_same(self, step: Step) -> None:
        expected = np.asarray(self.model(step, self.cache))
        ours = self.plan(step)
        assert ours.shape == expected.shape and ours.dtype == np.float32
        np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


@pytest.fixture(params=tiny.usable_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with tiny.isa(request.param):
        yield request.param


@pytest.fixture
def pair() -> Pair:
    return Pair(load("relu2"))


@pytest.mark.parametrize("name", ALL)
def test_logits_are_the_same_bits(isa: str, name: str) -> None:
    pair = Pair(load(name))
    for lengths, chunk in (([40], 40), ([40], 9), ([7], 1), ([33, 5, 17, 1], 8), ([3, 3, 3], 1)):
        for want in ("all", "last", "ends"):
            for step in steps(lengths, chunk, want):
                pair.assert_same(step)


@pytest.mark.parametrize("kv", ["f16", "f32", "int8"])
def test_a_cache_of_any_type(isa: str, kv: str) -> None:
    pair = Pair(load("llama"), kv)
    for step in steps([40, 21], 13, "last"):
        pair.assert_same(step)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_any_number_of_threads(threads: int) -> None:
    before = _core.threads()
    _core.set_threads(threads)
    try:
        pair = Pair(tiny.load(tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"]), "cpu"))
        for step in steps([200], 64, "last"):
            pair.assert_same(step)
    finally:
        _core.set_threads(before)


def test_threads_and_instruction_set_may_change_between_steps(pair: Pair) -> None:
    before = _core.threads()
    try:
        for step, threads, name in zip(steps([40], 10, "all"), (1, 3, 2, 1), 2 * tiny.usable_isas() + ["scalar"] * 4):
            _core.set_threads(threads)
            with tiny.isa(name):
                pair.assert_same(step)
    finally:
        _core.set_threads(before)


@pytest.mark.parametrize("top", [0, 1, 5, 272, [3, 0, 1, 0, 272], [0, 0, 2, 0, 0]])
def test_a_screened_head_leaves_out_the_same_logits(isa: str, top: int | list[int]) -> None:
    model = load("untied")
    model.ops.add_screen(model.weights["lm_head"])
    pair = Pair(model)
    for step in steps([33, 5, 17, 1], 8, "last"):
        each = top if isinstance(top, int) else np.resize(np.array(top, np.int32), len(step.want))
        pair.assert_same(replace(step, top=each))


def test_larger_and_smaller_steps_in_any_order(pair: Pair) -> None:
    at = 0
    table = np.arange(BLOCKS, dtype=np.int32)[None]
    for count in (1, 30, 2, 64, 1, 5, 90, 1):
        rows = np.arange(count, dtype=np.int32)
        starts = np.array([0, count], np.int32)
        pair.assert_same(Step(rows + np.int32(3), rows + np.int32(at), starts, rows[::-2].copy(), table))
        at += count


def test_wanted_rows_in_any_order_and_more_than_once(pair: Pair) -> None:
    pair.assert_same(Step.whole(PROMPT, want=[7, 3, 3, 19, 0, 7]))


def test_tables_of_angles_grow_with_the_positions(pair: Pair) -> None:
    table = np.zeros((1, 400), np.int32)  # wider than the cache has blocks
    table[0, :BLOCKS] = np.arange(BLOCKS)
    pair.assert_same(replace(Step.whole(PROMPT), block_tables=table))
    model = load("relu2")
    cache = model.ops.new_cache(2, 64, 2, 16, "f16")
    plan, eager = model.ops.compile(model, cache), model.ops.new_cache(2, 64, 2, 16, "f16")
    table = np.arange(64, dtype=np.int32)[None]
    for start in (0, 250, 500, 750):
        at = np.arange(start, start + 250, dtype=np.int32)
        step = Step(at % 250, at, np.array([0, 250], np.int32), np.array([249], np.int32), table[:, : start // 16 + 17])
        step = replace(step, block_tables=np.ascontiguousarray(step.block_tables))
        np.testing.assert_array_equal(plan(step), model(step, eager))


def test_an_unfinished_prompt_gives_no_logits_and_stores_its_keys(pair: Pair) -> None:
    step = Step.whole(PROMPT, want=[])
    assert pair.plan(step).shape == (0, 272)
    pair.model(step, pair.cache)
    one = np.array([20], np.int32)
    pair.assert_same(Step(one, one, np.array([0, 1], np.int32), one * 0, np.array([[0, 1]], np.int32)))


def test_what_only_the_wanted_rows_need_is_computed_for_them_alone(pair: Pair) -> None:
    lines = str(pair.plan).splitlines()
    last = max(i for i, line in enumerate(lines) if " = attention" in line)
    assert all("(S, " in line.split(" = ")[0] for line in lines[last + 1 :])
    assert all("(T, " in line.split(" = ")[0] for line in lines[: last + 1])


def test_a_step_of_no_tokens_is_empty(pair: Pair) -> None:
    none = np.empty(0, np.int32)
    step = Step(none, none, np.zeros(1, np.int32), none, np.empty((0, 1), np.int32))
    assert pair.plan(step).shape == (0, 272)


def test_logits_stay_as_they_were_given(pair: Pair) -> None:
    first = pair.plan(Step.whole(PROMPT))
    copy = first.copy()
    pair.plan(Step.whole(PROMPT[::-1]))
    np.testing.assert_array_equal(first, copy)


def test_memory_is_that_of_the_largest_step(pair: Pair) -> None:
    pair.plan(Step.whole(PROMPT * 5))
    largest = pair.plan.arena_bytes
    for count in (1, 7, 100, 20):
        pair.plan(Step.whole((PROMPT * 5)[:count]))
    assert pair.plan.arena_bytes == largest


def test_layers_share_their_memory() -> None:
    def arena(layers: int) -> int:
        plan = Pair(tiny.load(tiny.Synthetic(tiny.BITNET | {"num_hidden_layers": layers}), "cpu")).plan
        plan(Step.whole(PROMPT))
        return int(plan.arena_bytes)

    assert arena(7) == arena(2)
    # At most these live at once: the residual stream, its norm, gate and up; in the T and in the S part of the arena.
    assert arena(2) == 2 * 4 * len(PROMPT) * (64 + 64 + 160 + 160)


def test_a_long_run_does_not_grow(pair: Pair) -> None:
    tracemalloc = pytest.importorskip("tracemalloc")

    def run(count: int) -> None:
        for at in range(count):
            one = np.array([at % 200], np.int32)
            pair.plan(Step(one, one, np.array([0, 1], np.int32), one * 0, np.arange(BLOCKS, dtype=np.int32)[None]))

    run(300)
    tracemalloc.start()
    try:
        run(50)
        before = tracemalloc.get_traced_memory()[0]
        run(2000)
        assert tracemalloc.get_traced_memory()[0] - before < 10_000
    finally:
        tracemalloc.stop()


ONE = np.array([0], np.int32)
BAD_STEPS = {
    "id too large": {"ids": np.array([272], np.int32)},
    "id negative": {"ids": np.array([-1], np.int32)},
    "position negative": {"positions": np.array([-1], np.int32)},
    "position beyond the table": {"positions": np.array([BLOCK_SIZE], np.int32)},
    "position huge": {"positions": np.array([2**31 - 1], np.int32)},
    "block missing": {"block_tables": np.array([[-1]], np.int32)},
    "block too large": {"block_tables": np.array([[BLOCKS]], np.int32)},
    "blocks flat": {"block_tables": ONE},
    "blocks of another batch": {"block_tables": np.zeros((2, 1), np.int32)},
    "starts too short": {"starts": np.array([0], np.int32)},
    "starts empty": {"starts": np.empty(0, np.int32)},
    "starts not at 0": {"starts": np.array([1, 1], np.int32)},
    "starts beyond": {"starts": np.array([0, 2], np.int32)},
    "starts descend": {"starts": np.array([0, 9, 1], np.int32), "block_tables": np.zeros((2, 1), np.int32)},
    "wanted beyond": {"want": np.array([1], np.int32)},
    "wanted negative": {"want": np.array([-1], np.int32)},
    "ids of another type": {"ids": np.array([0], np.int64)},
    "positions of another length": {"positions": np.array([0, 1], np.int32)},
    "ids are a list": {"ids": [0]},
}


@pytest.mark.parametrize("change", BAD_STEPS.values(), ids=BAD_STEPS)
def test_a_step_that_does_not_fit_is_refused_and_changes_nothing(pair: Pair, change: dict[str, Any]) -> None:
    prompt = Step.whole(PROMPT[:3], want=[])
    pair.model(prompt, pair.cache)
    pair.plan(prompt)
    good = Step.whole([5])
    with pytest.raises(ParameterError):
        pair.plan(replace(good, **change))
    one = np.array([3], np.int32)
    pair.assert_same(Step(one, one, np.array([0, 1], np.int32), ONE, np.array([[0]], np.int32)))


# Capture.


def test_shapes_are_checked_as_they_are_captured() -> None:
    model = load("relu2")
    cache = tiny.new_cache(model, 64)
    program = _core.Program(cache)
    x = program.embed(model.weights["embed_tokens"])
    q, k, _ = program.linear(x, [model.layers[0][f"self_attn.{p}_proj"] for p in "qkv"])
    for call in (
        lambda: program.add(x, k),
        lambda: program.gate(x, k, "silu"),
        lambda: program.gate(x, x, "tanh"),
        lambda: program.rms_norm(k, model.weights["norm"], 1e-5),
        lambda: program.linear(k, [model.layers[0]["mlp.up_proj"]]),
        lambda: program.linear(x, []),
        lambda: program.linear(x, [None]),
        lambda: program.linear(x, [np.zeros((4, 64), np.float32)]),
        lambda: program.head(x, model.weights["lm_head"]),
        lambda: program.take(program.take(x)),
        lambda: program.rope(x, 0),
        lambda: program.attention(q, k, q, 0, 16, 0.25),
        lambda: program.attention(q, k, k, 2, 16, 0.25),
        lambda: program.attention(q, k, k, 0, 32, 0.25),
        lambda: program.add(x, 99),
        lambda: program.add(-1, x),
        lambda: _core.Plan(program, x),
    ):
        with pytest.raises(ValueError):
            call()


def test_a_model_that_does_not_follow_its_step_cannot_be_captured() -> None:
    class Shifted(type(load("relu2"))):  # type: ignore[misc]
        def __call__(self, step: Step, cache: Any) -> Any:
            return self.ops.embed(np.zeros(3, np.int32), self.weights["embed_tokens"])

    model = load("relu2")
    with pytest.raises(ValueError, match="step.ids"):
        model.ops.compile(Shifted(model.config, model.weights, model.ops), tiny.new_cache(model, 16))


def test_a_plan_keeps_what_it_points_at_alive() -> None:
    model = load("relu2")
    expected = tiny.logits(model, PROMPT)
    plan = model.ops.compile(model, tiny.new_cache(model, len(PROMPT)))
    del model
    noise = [np.random.default_rng(0).random(2000) for _ in range(50)]
    np.testing.assert_array_equal(plan(Step.whole(PROMPT)), expected)
    assert noise


def test_other_backends_call_the_model() -> None:
    model = tiny.load(tiny.Synthetic(tiny.BITNET), backends.make("reference"))
    compiled = model.ops.compile(model, tiny.new_cache(model, len(PROMPT)))
    np.testing.assert_array_equal(compiled(Step.whole(PROMPT)), tiny.logits(model, PROMPT))


# Threads and signals.


def test_other_threads_run_during_a_replay(pair: Pair) -> None:
    """With threads never made to take turns, the other one runs only where the replay lets it."""
    go, ran = threading.Event(), threading.Event()

    def other() -> None:
        go.wait()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    step, interval = Step.whole(PROMPT * 5), sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        go.set()
        for _ in range(20_000):
            if ran.is_set():
                break
            pair.plan(step)
        seen = ran.is_set()
    finally:
        sys.setswitchinterval(interval)
    thread.join()
    assert seen


def test_threads_that_share_a_plan_take_turns() -> None:
    model = load("relu2")
    plan = model.ops.compile(model, tiny.new_cache(model, 256))
    expected = tiny.logits(model, PROMPT, "f32")
    found: list[Any] = []

    def run(first: int) -> None:
        step = replace(Step.whole(PROMPT), block_tables=np.array([[first, first + 1]], np.int32))
        found.extend(plan(step) for _ in range(50))

    threads = [threading.Thread(target=run, args=(2 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    for logits in found:
        np.testing.assert_array_equal(logits, expected)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_signals_are_handled_between_steps(pair: Pair) -> None:
    class Rang(Exception):
        pass

    def ring(*_: Any) -> None:
        raise Rang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(Rang):  # noqa: PT012
            while True:
                pair.plan(Step.whole(PROMPT))
        pair.assert_same(Step.whole(PROMPT))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
