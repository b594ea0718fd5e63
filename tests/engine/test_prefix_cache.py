"""Blocks that sequences share: what is in them is always what each of their owners would have computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import scripted
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bitnet import backends
from bitnet.backends.base import BLOCK_SIZE
from bitnet.engine import LLM, EngineConfig, PromptLookup, SamplingParams, Sequence
from bitnet.engine.kv_cache import BlockPool
from bitnet.engine.prefix_index import block_hash
from bitnet.errors import BitNetError

TOKENIZER = tiny.tokenizer()
KV = ("f16", "f32", "int8")


class Pool(RuleBasedStateMachine):
    """Sequences over two letters come, grow, forget and go. `slots` stands for the cache: each position that is
    computed writes down the text up to it."""

    @initialize(count=st.integers(1, 12))
    def open(self, count: int) -> None:
        self.pool, self.sequences = BlockPool(count, share=True), list[Sequence]()
        self.slots: dict[int, tuple[int, ...]] = {}

    def compute(self, sequence: Sequence, end: int) -> None:
        text = sequence.tokens(0, len(sequence))
        for position in range(sequence.computed, end):
            block = sequence.blocks[position // BLOCK_SIZE]
            self.slots[block * BLOCK_SIZE + position % BLOCK_SIZE] = tuple(text[: position + 1])
        sequence.computed = end

    @rule(
        pieces=st.lists(st.tuples(st.integers(0, 1), st.integers(1, 20)), min_size=1, max_size=5),
        keep=st.integers(0, 40),
    )
    def begin(self, pieces: list[tuple[int, int]], keep: int) -> None:
        prompt = [letter for letter, count in pieces for _ in range(count)]
        sequence = Sequence(0, prompt, SamplingParams(), keep=min(keep, len(prompt) // 2))
        found = self.pool.find(sequence)
        assert len(found) * BLOCK_SIZE < len(prompt)
        missing = self.pool.missing(sequence, len(prompt), found)
        free = self.pool.free
        self.pool.adopt(sequence, found)
        self.pool.count_hits(sequence)
        assert self.pool.grow(sequence, len(prompt)) == (missing <= free)
        if missing <= free:
            assert self.pool.free == free - missing
            self.sequences.append(sequence)
        else:
            self.pool.release(sequence)
            assert self.pool.free == free

    @rule(data=st.data(), count=st.integers(1, 40))
    def read(self, data: st.DataObject, count: int) -> None:
        if self.sequences:
            sequence = data.draw(st.sampled_from(self.sequences))
            end = min(len(sequence), sequence.computed + count)
            if self.pool.grow(sequence, end):
                self.compute(sequence, end)
                self.pool.offer(sequence)

    @rule(data=st.data(), tokens=st.lists(st.integers(0, 1), max_size=20), right=st.integers(0, 3))
    def write(self, data: st.DataObject, tokens: list[int], right: int) -> None:
        """New tokens, computed with guesses at others of which some are right."""
        if self.sequences:
            sequence = data.draw(st.sampled_from(self.sequences))
            if self.pool.grow(sequence, len(sequence) + len(tokens) + 4):
                for token in tokens:
                    sequence.append(token)
                self.compute(sequence, len(sequence))
                for position in range(len(sequence), len(sequence) + 4):  # what wrong guesses leave behind
                    block = sequence.blocks[position // BLOCK_SIZE]
                    self.slots[block * BLOCK_SIZE + position % BLOCK_SIZE] = (9,)
                self.pool.offer(sequence)
                self.pool.trim(sequence, len(sequence))

    @rule(data=st.data())
    def slide(self, data: st.DataObject) -> None:
        if self.sequences:
            sequence = data.draw(st.sampled_from(self.sequences))
            if len(sequence) > 2 * sequence.keep + 2:
                sequence.slide(len(sequence))
                self.pool.rewrite(sequence)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.sequences:
            sequence = data.draw(st.sampled_from(self.sequences))
            self.pool.release(sequence)
            self.sequences.remove(sequence)

    @invariant()
    def every_owner_finds_what_it_computed(self) -> None:
        for sequence in getattr(self, "sequences", ()):
            text = sequence.tokens(0, len(sequence))
            for position in range(sequence.computed):
                block = sequence.blocks[position // BLOCK_SIZE]
                assert self.slots[block * BLOCK_SIZE + position % BLOCK_SIZE] == tuple(text[: position + 1])

    @invariant()
    def what_is_known_is_there(self) -> None:
        for block, content in getattr(self, "pool", BlockPool(0)).index.contents.items():
            text = list(self.slots[block * BLOCK_SIZE + BLOCK_SIZE - 1])
            assert text[-BLOCK_SIZE:] == np.frombuffer(content.tokens, np.int32).tolist()
            assert content.hash == block_hash(Sequence(0, text, SamplingParams()), len(text) // BLOCK_SIZE - 1)

    @invariant()
    def blocks_are_owned_or_free(self) -> None:
        if not hasattr(self, "pool"):
            return
        owners = Counter(block for sequence in self.sequences for block in sequence.blocks)
        pool = self.pool
        assert [owners[block] for block in range(pool.count)] == pool._owners
        free = [*pool._blank, *pool._kept]
        assert sorted([*free, *owners]) == list(range(pool.count))
        assert all(block in pool.index for block in pool._kept)
        assert not any(block in pool.index for block in pool._blank)


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_the_pool = Pool.TestCase


# With the engine around it.


def recorded(llm: LLM) -> dict[tuple[int, int], bytes]:
    """The logits that the engine will compute, by sequence and position."""
    found: dict[tuple[int, int], bytes] = {}
    plain = llm.runner.run

    def run(chunks: Any, **options: Any) -> Any:
        parts = plain(chunks, **options)
        for chunk, logits in zip(chunks, parts, strict=True):
            for row, values in enumerate(logits, chunk.start + len(chunk) - len(logits)):
                found[chunk.sequence.id, row] = values.tobytes()
        return parts

    llm.runner.run = run  # type: ignore[method-assign]
    return found


TEXT = [1 + (7 * i + i // 11) % 250 for i in range(120)]
PROMPTS = [TEXT[:50], TEXT[:50], TEXT[:80], [*TEXT[:40], *TEXT[:40]], TEXT[:48], TEXT[:49], TEXT[:33], TEXT[1:60], TEXT]


WINDOWED = tiny.BITNET | {
    "model_type": "gemma3_text",
    "hidden_act": "gelu_pytorch_tanh",
    "sliding_window": 20,
    "sliding_window_pattern": 2,
    "query_pre_attn_scalar": 16,
    "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear"},
}


@cache
def any_model(name: str) -> Any:
    config = {"plain": tiny.BITNET, "windowed": WINDOWED}[name]
    return tiny.load(tiny.Synthetic(config), "cpu" if tiny.usable_isas() else "reference")


@pytest.fixture(scope="module", params=["reference", *tiny.usable_isas()])
def model(request: pytest.FixtureRequest) -> Any:
    with tiny.isa(request.param):
        yield tiny.load(
            tiny.Synthetic(tiny.BITNET), backends.make("reference" if request.param == "reference" else "cpu")
        )


def one_by_one(
    model: Any, params: SamplingParams, **config: Any
) -> tuple[list[Sequence], dict[tuple[int, int], bytes]]:
    llm = LLM(model, TOKENIZER, EngineConfig(**{"ctx_size": 160, "head": "full", **config}))
    logits, sequences = recorded(llm), []
    for prompt in PROMPTS:
        sequences.append(llm.add_request(prompt, params))
        list(llm.run(sequences[-1:]))
    return sequences, logits


@pytest.mark.parametrize("kv", KV)
def test_logits_after_a_hit_are_those_without_bit_for_bit(model: Any, kv: str) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.2, seed=1, logprobs=2, ignore_eos=True)
    shared, with_hits = one_by_one(model, params, kv=kv)
    unshared, without = one_by_one(model, params, kv=kv, prefix_cache=False)
    assert [each.cached for each in shared] == [0, 48, 48, 32, 32, 48, 32, 0, 80]
    assert not any(each.cached for each in unshared)
    assert with_hits == without
    assert [(s.output, s.logprobs) for s in shared] == [(s.output, s.logprobs) for s in unshared]


@pytest.mark.parametrize("kv", KV)
def test_layers_with_windows_share_too(kv: str) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.2, seed=3, ignore_eos=True)
    model = any_model("windowed")
    assert model.config.windows == (20, 0)
    shared, with_hits = one_by_one(model, params, kv=kv)
    _, without = one_by_one(model, params, kv=kv, prefix_cache=False)
    assert sum(each.cached for each in shared) > 200
    assert with_hits == without


PARAMS = SamplingParams(max_tokens=40, temperature=0.9, seed=5, ignore_eos=True)


def context(kv: str, slide: bool) -> dict[str, Any]:
    sizes: dict[str, Any] = {"ctx_size": 64, "ctx_overflow": "slide"} if slide else {"ctx_size": 160}
    return {"ctx_keep": 20, "kv": kv, **sizes}


@cache
def alone(name: str, kv: str, slide: bool) -> list[list[int]]:
    """What is said after each prompt where nothing is shared."""
    llm = LLM(any_model(name), TOKENIZER, EngineConfig(max_sequences=1, prefix_cache=False, **context(kv, slide)))
    sequences = [llm.add_request(prompt, PARAMS) for prompt in PROMPTS]
    list(llm.run(sequences))
    return [each.output for each in sequences]


@settings(max_examples=60, deadline=None)
@given(
    order=st.permutations(range(len(PROMPTS))),
    name=st.sampled_from(["plain", "windowed"]),
    kv=st.sampled_from(KV),
    max_sequences=st.integers(1, 5),
    chunk=st.integers(1, 64),
    kv_blocks=st.integers(10, 40),
    drafts=st.booleans(),
    slide=st.booleans(),
    count=st.integers(0, 40),
    aborts=st.lists(st.tuples(st.integers(0, 30), st.integers(0, len(PROMPTS) - 1)), max_size=4),
)
def test_together_with_few_blocks_guesses_sliding_and_aborts(
    order: list[int],
    name: str,
    kv: str,
    max_sequences: int,
    chunk: int,
    kv_blocks: int,
    drafts: bool,
    slide: bool,
    count: int,
    aborts: list[tuple[int, int]],
) -> None:
    """aborts: at which step which request is abandoned, wherever it is."""
    sizes = {"max_sequences": max_sequences, "chunk": chunk, "kv_blocks": kv_blocks}
    config, params = EngineConfig(**sizes, **context(kv, slide)), replace(PARAMS, max_tokens=count)  # type: ignore[arg-type]
    llm = LLM(any_model(name), TOKENIZER, config, PromptLookup() if drafts else None)
    sequences = [llm.add_request(PROMPTS[i], params) for i in order]
    for step in range(31):
        for at, i in aborts:
            if at == step:
                llm.abort(sequences[i])
        llm.step()
    list(llm.run(sequences))
    assert llm.scheduler.pool.free == llm.scheduler.pool.count
    for i, sequence in zip(order, sequences, strict=True):
        length = len(sequence.output) if sequence.finish_reason == "abort" else count
        assert sequence.output == alone(name, kv, slide)[i][:length]


def engine(**config: Any) -> LLM:
    scripts = {first: [first, *((first * 31 + 7 * i) % 250 for i in range(1, 256))] for first in range(1, 20)}
    return LLM(scripted.Scripted(scripts), TOKENIZER, EngineConfig(**{"chunk": 64, **config}))  # type: ignore[arg-type]


def ask(llm: LLM, prompt: list[int], count: int = 1, **options: Any) -> Sequence:
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)
    sequence = llm.prepare(prompt, params, **options)
    llm.add(sequence)
    list(llm.run([sequence]))
    return sequence


def test_it_says_how_much_was_there_and_why_not_more() -> None:
    llm = engine()
    text = [1, *range(100, 199)]
    assert (ask(llm, text[:70]).cached, ask(llm, text[:70]).cached) == (0, 64)
    told = {
        "first": [2] * 40,
        "diverged at token 37": [*text[:37], 7, *text[37:50]],
        "diverged at token 3": [*text[:3], *range(40)],
        "ended at token 64": text,
        "": text[:65],
    }
    assert {reason: ask(llm, prompt).miss for reason, prompt in told.items()} == dict(zip(told, told))
    pool = llm.scheduler.pool
    assert pool.queries == 70 + 70 + sum(map(len, told.values()))
    assert pool.hits == 64 + 32 + 0 + 64 + 64


def test_what_was_given_up_is_said_to_be() -> None:
    llm = engine(kv_blocks=6, ctx_size=96)
    ask(llm, [1] * 60)
    ask(llm, [2] * 90)  # takes all
    again = ask(llm, [1] * 60)
    assert (again.cached, again.miss) == (0, "evicted")


def test_the_least_recently_used_is_given_up_first() -> None:
    llm = engine(kv_blocks=6, ctx_size=64)
    for first in (1, 2, 1, 3):  # 1 is used again before 3 needs more than the two blank ones
        last = ask(llm, [first] * 40)
    assert last.cached == 0
    assert (ask(llm, [1] * 40).cached, ask(llm, [2] * 40).cached) == (32, 16)


def test_generated_text_is_shared_too() -> None:
    llm = engine()
    first = ask(llm, [1] * 10, 60)
    next_turn = ask(llm, [*first.prompt, *first.output, *range(30, 50)])
    assert (next_turn.cached, next_turn.miss) == (64, "ended at token 64")


def test_sequences_that_come_together_read_their_prompt_once() -> None:
    llm = engine(max_sequences=4, chunk=30)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    sequences = [llm.add_request([1] * 100, params) for _ in range(4)]
    list(llm.run(sequences))
    assert [each.cached for each in sequences] == [0, 96, 96, 96]
    assert sum(llm.model.tokens_per_step) == 100 + 3 * 4 + 4 * 2  # type: ignore[attr-defined]
    assert len({tuple(each.output) for each in sequences}) == 1


def test_whoever_waits_for_a_neighbour_goes_on_when_that_one_leaves() -> None:
    llm = engine(chunk=16)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    first, second = (llm.add_request([1] * 100, params) for _ in range(2))
    llm.step()
    assert (first.computed, second.computed) == (16, 0)
    llm.abort(first)
    list(llm.run([second]))
    assert (second.cached, second.finish_reason) == (16, "length")


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    computed = []
    for prefix_cache in (True, False):
        llm = engine(max_sequences=2, kv_blocks=8, ctx_size=128, prefix_cache=prefix_cache)
        params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
        older, younger = llm.add_request([1] * 20, params), llm.add_request([2] * 40, params)
        list(llm.run([older, younger]))
        computed.append(sum(llm.model.tokens_per_step))  # type: ignore[attr-defined]
        assert younger.cached == 0  # when it came
    needed = 20 + 59 + 40 + 59
    assert needed < computed[0] <= computed[1] - 3 * BLOCK_SIZE


def test_a_scored_prompt_is_computed_whole_and_left_for_others() -> None:
    llm = engine()
    ask(llm, [1] * 50)
    scored = ask(llm, [1] * 70, score_from=0)
    assert (scored.cached, scored.miss, len(scored.prompt_logprobs)) == (0, "scored", 69)
    assert ask(llm, [1] * 70).cached == 64


def test_what_stands_before_the_scored_part_is_shared() -> None:
    llm = engine()
    ask(llm, [1] * 50)
    end = ask(llm, [1] * 70, score_from=50)
    whole = ask(llm, [1] * 70, score_from=0)
    assert (end.cached, end.miss, len(end.prompt_logprobs)) == (48, "scored", 19)
    assert end.prompt_logprobs == whole.prompt_logprobs[50:]


def test_salts_do_not_share() -> None:
    llm = engine()
    ask(llm, [1] * 50)
    salted = llm.prepare([1] * 50, SamplingParams(max_tokens=1))
    salted.salt = b"somebody else's"
    llm.add(salted)
    list(llm.run([salted]))
    assert (salted.cached, salted.miss) == (0, "first")


def test_switched_off_nothing_is_shared() -> None:
    llm = engine(prefix_cache=False)
    ask(llm, [1] * 50)
    again = ask(llm, [1] * 50)
    assert (again.cached, again.miss, llm.scheduler.pool.queries) == (0, "disabled", 0)


def test_after_a_failure_nothing_of_before_is_trusted() -> None:
    llm = engine()
    ask(llm, [1] * 50)
    llm.reset(BitNetError("a bug"))
    assert ask(llm, [1] * 50).cached == 0
