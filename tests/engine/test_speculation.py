"""Guesses at tokens change nothing but the number of steps."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import scripted
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Guesses

from bitnet.engine import LLM, Drafter, DraftModel, EngineConfig, PromptLookup, SamplingParams, Sequence
from bitnet.engine.draft import LONGEST, SHORTEST, NgramIndex
from bitnet.engine.draft_model import check_vocabularies
from bitnet.engine.kv_cache import BlockPool
from bitnet.engine.scheduler import Chunk
from bitnet.engine.speculation import Speculator
from bitnet.errors import BitNetError, ParameterError
from bitnet.models import Decoder
from bitnet.quant.tensor import DenseTensor

pytestmark = pytest.mark.skipif(not tiny.usable_isas(), reason="the C++ core is not built")
CONTEXT = 96
TOKENIZER = tiny.tokenizer()
PROMPTS = [[1 + (7 * i + 13 * j) % 250 for j in range(length)] for i, length in enumerate((5, 40, 1, 90, 33, 16))]
EOS = TOKENIZER.eos_id
assert EOS is not None


def run(
    model: Any, requests: list[tuple[list[int], SamplingParams]], drafter: Drafter | None = None, **config: Any
) -> list[Sequence]:
    """The finished sequences, each with its text as `finish_reason: text`, after all blocks have come back."""
    llm = LLM(model, TOKENIZER, EngineConfig(**{"ctx_size": CONTEXT, **config}), drafter)
    sequences = [llm.add_request(prompt, params) for prompt, params in requests]
    texts, tokens = dict.fromkeys(sequences, ""), {sequence: [] for sequence in sequences}
    while llm.busy:
        for output in llm.step():
            texts[output.sequence] += output.text
            tokens[output.sequence] += [] if output.token is None else [output.token]
        owned = {block for sequence in sequences for block in sequence.blocks}
        assert len(owned) == llm.scheduler.pool.count - llm.scheduler.pool.free
    for sequence in sequences:
        assert tokens[sequence] == sequence.output
        sequence.unread.append(texts[sequence])
    assert llm.scheduler.pool.free == llm.scheduler.pool.count
    return sequences


def told(sequences: list[Sequence]) -> list[tuple[Any, ...]]:
    """Everything that a caller sees of them."""
    return [(s.output, s.unread[0], s.finish_reason, s.logprobs, s.prompt_logprobs) for s in sequences]


def scripts(sequences: list[Sequence]) -> dict[int, list[int]]:
    return {sequence.prompt[0]: sequence.prompt + sequence.output for sequence in sequences}


@cache
def model(seed: int = 0) -> Decoder:
    return tiny.load(tiny.Synthetic(tiny.BITNET, tiny.random_weights(tiny.BITNET, seed)), "cpu")


PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.sampled_from([0, 1, 2, 3, 7, 30, None]),
    temperature=st.sampled_from([0, 0, 0.1, 0.8, 2.0]),
    top_k=st.sampled_from([0, 1, 40]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7]),
    seed=st.integers(0, 3),
    stop=st.sampled_from([(), (), ("e",), ("\n", "th")]),
    ignore_eos=st.booleans(),
    logprobs=st.sampled_from([None, None, 0, 3]),
)


@settings(max_examples=250, deadline=None)
@given(
    params=st.lists(PARAMS, min_size=1, max_size=len(PROMPTS)),
    kind=st.sampled_from(["right", "half", "wrong", "lookup", "model", "itself"]),
    draft_tokens=st.integers(1, 12),
    max_sequences=st.integers(1, 6),
    chunk=st.integers(1, 64),
    kv_blocks=st.integers(6, 40),
    data=st.data(),
)
def test_guesses_change_no_token_no_text_and_no_number(
    params: list[SamplingParams],
    kind: str,
    draft_tokens: int,
    max_sequences: int,
    chunk: int,
    kv_blocks: int,
    data: st.DataObject,
) -> None:
    order = data.draw(st.permutations(PROMPTS))
    requests = list(zip(order, params))
    alone = run(model(), requests, max_sequences=1)
    sizes = {"max_sequences": max_sequences, "chunk": chunk, "kv_blocks": kv_blocks, "draft_tokens": draft_tokens}
    config = EngineConfig(ctx_size=CONTEXT, **sizes)
    drafter: Drafter
    if kind in ("model", "itself"):
        drafter = DraftModel(model(int(kind == "model")), config, 272)
    elif kind == "lookup":
        drafter = PromptLookup()
    else:
        drafter = Guesses(scripts(alone), wrong={"right": 0.0, "half": 0.5, "wrong": 1.0}[kind])
    assert told(run(model(), requests, drafter, **sizes)) == told(alone)


def test_right_guesses_take_one_step_for_all_of_them() -> None:
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    alone = run(model(), [(PROMPTS[0], params)])
    for drafter in (
        Guesses(scripts(alone)),
        DraftModel(model(), EngineConfig(ctx_size=CONTEXT), 272),
    ):
        found = run(model(), [(PROMPTS[0], params)], drafter, draft_tokens=3)[0]
        # The first token comes with the prompt, the last three in a step of their own.
        assert (alone[0].steps, found.steps) == (40, 1 + 39 // 4 + 1)
        assert (found.drafted, found.accepted) == (29, 29)


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_the_first_wrong_guess_gives_way_to_the_sampled_token(wrong: int) -> None:
    class OneWrong(Guesses):
        def after(self, sequence: Sequence, count: int) -> list[int]:
            return [token ^ (i == wrong) for i, token in enumerate(super().after(sequence, count))]

    script = [33, *range(50, 90)]
    engine = scripted.Scripted({33: script})
    params = SamplingParams(max_tokens=1 + 5 * (wrong + 1), temperature=0)
    found = run(engine, [([33], params)], OneWrong({33: script}), draft_tokens=3)[0]
    # The prompt gives one token; five steps give the right guesses and what stands in place of the wrong one.
    assert found.output == script[1 : len(found.output) + 1] and len(found.output) == params.max_tokens
    assert (found.steps, found.accepted) == (6, 5 * wrong)


def script_engine(answer: list[int], **config: Any) -> tuple[Any, Guesses, list[int]]:
    prompt = TOKENIZER.encode("A", add_special=False)
    return scripted.Scripted({prompt[0]: prompt + answer}), Guesses({prompt[0]: prompt + answer}), prompt


@pytest.mark.parametrize("place", range(1, 7))
def test_an_end_within_the_guesses_is_the_end(place: int) -> None:
    """End of text, a stop string, the most tokens, numbers that are none: at every place of a step of five."""
    letters = TOKENIZER.encode("abcdefghijklmnop", add_special=False)
    ends: dict[str, tuple[list[int], dict[str, Any]]] = {
        "eos": ([*letters[:place], EOS, *letters], {}),
        "stop": (letters, {"stop": ("abcdefghijk"[place],)}),
        "most": (letters, {"max_tokens": place}),
        "nan": ([*letters[:place], -1, *letters], {}),
    }
    for name, (answer, changes) in ends.items():
        engine, drafter, prompt = script_engine(answer)
        drafter.scripts = {prompt[0]: prompt + [max(token, 0) for token in answer]}
        request = [(prompt, SamplingParams(**{"temperature": 0, "max_tokens": 30, "logprobs": 1, **changes}))]
        guessed, alone = (run(engine, request, d, draft_tokens=5)[0] for d in (drafter, None))
        assert told([guessed]) == told([alone]), name
        assert guessed.steps <= alone.steps and isinstance(guessed.error, BitNetError) == (name == "nan")


@pytest.mark.parametrize("room", range(1, 9))
def test_the_end_of_the_context_within_the_guesses_is_the_end(room: int) -> None:
    engine, drafter, prompt = script_engine([9] * 60)
    request = [(prompt, SamplingParams(temperature=0))]
    found = run(engine, request, drafter, ctx_size=1 + room, draft_tokens=4)[0]
    assert (found.output, found.finish_reason) == ([9] * room, "length")


@pytest.mark.parametrize("backend", ["reference", *tiny.usable_isas()])
def test_numbers_that_are_none_in_a_wrong_guess_reach_nobody(backend: str) -> None:
    """Every guess is a token whose embedding is NaN."""
    source = tiny.Synthetic(tiny.BITNET | {"tie_word_embeddings": False})
    params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, repetition_penalty=1.5)
    requests = [(prompt, params) for prompt in ([5, 6, 7], [9] * 30)]
    ops = "reference" if backend == "reference" else "cpu"
    with tiny.isa(backend):
        clean = run(tiny.load(source, ops), requests)
        unsaid = next(token for token in range(272) if all(token not in (*s.prompt, *s.output) for s in clean))
        table = source.weights["model.embed_tokens.weight"].dequantize().copy()
        table[unsaid] = np.nan
        source.weights["model.embed_tokens.weight"] = DenseTensor(table)
        spoilt = Guesses({prompt[0]: [unsaid] * 99 for prompt, _ in requests})
        found = run(tiny.load(source, ops), requests, spoilt, draft_tokens=6)
    assert told(found) == told(clean) and all(s.drafted > 0 and s.accepted == 0 for s in found)


@pytest.mark.parametrize("isa", tiny.usable_isas())
def test_sampled_text_is_the_same_on_every_instruction_set(isa: str) -> None:
    params = SamplingParams(max_tokens=30, temperature=1.2, top_k=0, seed=11, ignore_eos=True, logprobs=2)
    requests = [(prompt, params) for prompt in PROMPTS[:3]]
    with tiny.isa(isa):
        packed = tiny.load(tiny.Synthetic(tiny.BITNET), "cpu")
        alone = run(packed, requests, max_sequences=1)
        half = run(packed, requests, Guesses(scripts(alone), wrong=0.4), draft_tokens=7)
    assert told(half) == told(alone) and sum(s.accepted for s in half) > 0


# How many guesses, and at whose cost.


def speculator(count: int = 4, chunk: int = 512, pays: float = 0.3) -> Speculator:
    drafter = Guesses({})
    drafter.pays = pays
    return Speculator(drafter, count, chunk)


def decode(length: int, blocks: int) -> Chunk:
    sequence = Sequence(0, [1] * length, SamplingParams(temperature=0), computed=length - 1, blocks=list(range(blocks)))
    return Chunk(sequence, length - 1, length)


def test_guesses_take_only_blocks_that_are_free() -> None:
    for length, free, expected in ((16, 0, 0), (16, 1, 4), (14, 0, 2), (30, 1, 4)):
        pool = BlockPool(free)
        chunk = decode(length, -(-length // 16))
        (found,) = speculator(4, pays=0.01).add_drafts([chunk], pool, lambda s: 99)
        assert len(found.drafts) == expected


def test_rejected_guesses_leave_no_block_behind() -> None:
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    llm = LLM(model(), TOKENIZER, EngineConfig(ctx_size=CONTEXT, draft_tokens=12), Guesses({}, wrong=1.0))
    sequence = llm.add_request([3] * 10, params)
    while llm.busy:
        llm.step()
        assert len(sequence.blocks) <= -(-len(sequence) // 16)


def test_a_full_step_has_no_room_for_guesses() -> None:
    decodes = [decode(5, 1) for _ in range(8)]
    (one,) = speculator().add_drafts(decodes[:1], BlockPool(4), lambda s: 99)
    assert len(one.drafts) == 4
    assert all(not c.drafts for c in speculator().add_drafts(decodes, BlockPool(4), lambda s: 99))
    assert all(len(c.drafts) == 1 for c in speculator().add_drafts(decodes[:4], BlockPool(4), lambda s: 99))
    assert not speculator(chunk=1).add_drafts(decodes[:1], BlockPool(4), lambda s: 99)[0].drafts


def test_wrong_guesses_become_rare_and_right_ones_longer() -> None:
    long = SamplingParams(max_tokens=1000, temperature=0, ignore_eos=True)
    script = [1 + (i * i) % 250 for i in range(1100)]
    engine = scripted.Scripted({script[0]: script}, context=2000)
    for guess, steps, drafted in ((script, 140, 1000), ([0] * 1100, 1000, 100)):
        drafter = Guesses({script[0]: guess})
        drafter.pays = 0.3
        found = run(engine, [(script[:1], long)], drafter, ctx_size=2000, draft_tokens=7)[0]
        assert found.output == script[1:1001]
        assert found.steps <= steps and found.drafted <= drafted


# Where guesses come from.


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 3), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    count=st.integers(1, 9),
)
def test_the_index_finds_what_a_scan_of_the_text_finds(tokens: list[int], cuts: list[int], count: int) -> None:
    index = NgramIndex()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(tokens)]):
        index.extend(tokens[start:end])
    assert index.follow(count) == scan(tokens, count)


def scan(tokens: list[int], count: int) -> list[int]:
    for n in range(LONGEST, SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, n - 1, -1):
            if len(tokens) >= n and tokens[end - n : end] == tokens[-n:]:
                text = list(tokens)
                for i in range(count):
                    text.append(text[end + i])
                return text[len(tokens) :]
    return []


def test_a_text_that_repeats_itself_is_guessed_from_the_prompt() -> None:
    line = TOKENIZER.encode("one thing follows another, ", add_special=False)
    script = TOKENIZER.encode("A", add_special=False) + line * 6
    found = run(
        scripted.Scripted({script[0]: script}),
        [(script[: 2 * len(line)], SamplingParams(max_tokens=3 * len(line), temperature=0))],
        PromptLookup(),
        ctx_size=256,
    )[0]
    assert found.accepted == found.drafted > 2 * len(line)


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(1, 5)), min_size=2, max_size=5),
    data=st.data(),
)
def test_a_draft_model_guesses_what_it_would_say_itself(steps: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Whatever became of the guesses before: some were right, then other tokens came, unasked for if several."""
    drafter = DraftModel(model(), EngineConfig(ctx_size=CONTEXT, kv="f32", chunk=64), 272)
    sequences = [Sequence(i, list(prompt), SamplingParams()) for i, prompt in enumerate(PROMPTS[:3])]
    for count, right, others in steps:
        asked = data.draw(st.lists(st.sampled_from(sequences), min_size=1, unique_by=id))
        found = drafter.propose(dict.fromkeys(asked, count))
        for sequence in asked:
            context = sequence.tokens(0, len(sequence))
            assert found[sequence] == tiny.greedy(model(), context, count)
            sequence.output += [*found[sequence][:right], *[200] * others]


def test_a_drafter_forgets_what_has_ended() -> None:
    lookup, twins = PromptLookup(), DraftModel(model(1), EngineConfig(ctx_size=CONTEXT), 272)
    for drafter in (lookup, twins):
        run(model(), [(p, SamplingParams(max_tokens=9, temperature=0)) for p in PROMPTS], drafter)
    assert not lookup._indexes and not twins._twins and twins.pool.free == twins.pool.count


def test_a_draft_model_with_a_shorter_context_falls_silent_there() -> None:
    source = tiny.Synthetic(tiny.BITNET | {"max_position_embeddings": 32})
    drafter = DraftModel(tiny.load(source, "cpu"), EngineConfig(ctx_size=CONTEXT), 272)
    request = [(PROMPTS[0], SamplingParams(max_tokens=80, temperature=0, ignore_eos=True))]
    assert told(run(model(), request, drafter)) == told(run(model(), request))


def test_another_vocabulary_is_refused() -> None:
    check_vocabularies("this", TOKENIZER, tiny.tokenizer())
    with pytest.raises(ParameterError, match=r"this has another vocabulary \(300 tokens\).*\(272\)"):
        check_vocabularies("this", tiny.tokenizer(300), TOKENIZER)


@pytest.mark.parametrize("changes", [{"draft_tokens": 0}, {"ctx_keep": -1}, {"ctx_overflow": "wrap"}])
def test_absurd_options_are_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(changes))):
        EngineConfig(**changes)
