"""Whatever comes and goes, in whatever order and with however little memory: every sequence says what it was told."""

from __future__ import annotations

from typing import Any

import scripted
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet.backends.base import BLOCK_SIZE
from bitnet.engine import LLM, EngineConfig, SamplingParams, Sequence

CONTEXT = 96
SCRIPTS = {first: [first, *((first * 31 + 7 * i) % 250 for i in range(1, 2 * CONTEXT))] for first in range(1, 9)}
REQUEST = st.tuples(st.just("add"), st.integers(1, 8), st.integers(1, 90), st.integers(0, 60))
ACTIONS = st.lists(
    st.one_of(REQUEST, st.tuples(st.just("step"), st.integers(1, 12)), st.tuples(st.just("abort"), st.integers(0, 20))),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    actions=ACTIONS,
    max_sequences=st.integers(1, 5),
    chunk=st.integers(1, 40),
    kv_blocks=st.integers(1, 20),
    wrong=st.sampled_from([None, 0.0, 0.3, 1.0]),
)
def test_every_sequence_follows_its_script(
    actions: Any, max_sequences: int, chunk: int, kv_blocks: int, wrong: float | None
) -> None:
    model = scripted.Scripted(SCRIPTS, context=CONTEXT)
    config = EngineConfig(ctx_size=CONTEXT, max_sequences=max_sequences, chunk=chunk, kv_blocks=kv_blocks)
    drafter = None if wrong is None else scripted.Guesses(SCRIPTS, wrong)
    llm = LLM(model, tiny.tokenizer(), config, drafter)  # type: ignore[arg-type]
    sequences: list[Sequence] = []
    for kind, *numbers in actions:
        if kind == "add":
            first, length, count = numbers
            params = SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)
            sequences.append(llm.add_request(SCRIPTS[first][: min(length, llm.ctx_size - 1)], params))
        elif kind == "abort" and sequences:
            llm.abort(sequences[numbers[0] % len(sequences)])
        for _ in range(numbers[0] if kind == "step" else 0):
            llm.step()
            check_blocks(llm, sequences)
    steps = 0
    while llm.busy:
        llm.step()
        check_blocks(llm, sequences)
        steps += 1
        assert steps < 20_000, "the engine makes no progress"
    for sequence in sequences:
        script = SCRIPTS[sequence.prompt[0]]
        assert sequence.prompt + sequence.output == script[: len(sequence)]
        if sequence.finish_reason != "abort":
            wanted = sequence.params.max_tokens or 0
            assert len(sequence.output) == min(wanted, llm.ctx_size - len(sequence.prompt))
    assert llm.scheduler.pool.free == llm.scheduler.pool.count
    assert max(model.tokens_per_step, default=0) <= max(chunk, max_sequences)


def check_blocks(llm: LLM, sequences: list[Sequence]) -> None:
    """No block is lost, each is where it is shared, and what is computed has room."""
    owned = {block for sequence in sequences for block in sequence.blocks}
    assert len(owned) == llm.scheduler.pool.count - llm.scheduler.pool.free
    for sequence in sequences:
        assert sequence.computed <= len(sequence.blocks) * BLOCK_SIZE or sequence.status.value == "finished"
    assert len(llm.scheduler.running) <= llm.scheduler.max_sequences


def test_the_oldest_sequence_is_never_the_one_that_gives_way() -> None:
    model = scripted.Scripted(SCRIPTS, context=CONTEXT)
    llm = LLM(model, tiny.tokenizer(), EngineConfig(ctx_size=CONTEXT, max_sequences=4, kv_blocks=6))  # type: ignore[arg-type]
    params = SamplingParams(max_tokens=70, temperature=0, ignore_eos=True)
    oldest, *_ = [llm.add_request(SCRIPTS[first][:20], params) for first in (1, 2, 3, 4)]
    computed = 0
    while oldest.status.value != "finished":
        llm.step()
        assert oldest.computed >= computed
        computed = oldest.computed
