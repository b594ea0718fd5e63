"""When sequences end, what of their text is shown, and what one of them can do to the others: nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scripted
import tiny

from bitnet.engine import LLM, EngineConfig, Output, SamplingParams, Sequence
from bitnet.engine.sampling import log_softmax
from bitnet.errors import BitNetError, ContextError, ParameterError
from bitnet.quant.tensor import DenseTensor

GREEDY = SamplingParams(temperature=0)
TOKENIZER = tiny.tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False)


def ask(llm: LLM, params: SamplingParams = GREEDY, prompt: str = "A") -> tuple[str, Sequence]:
    sequence = llm.add_request(ids(prompt), params)
    return "".join(output.text for output in llm.run([sequence])), sequence


def greedy(**changes: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0, **changes})  # type: ignore[arg-type]


def test_the_end_of_text_token_ends_a_sequence_and_is_not_shown() -> None:
    text, sequence = ask(scripted.engine([*ids("the cat"), TOKENIZER.eos_id, *ids("more")]))
    assert (text, sequence.finish_reason) == ("the cat", "stop")
    assert sequence.output[-1] == TOKENIZER.eos_id


def test_ignore_eos_goes_on() -> None:
    llm = scripted.engine([*ids("the cat"), TOKENIZER.eos_id, *ids(" ran"), TOKENIZER.eos_id])
    assert ask(llm, greedy(ignore_eos=True, max_tokens=12))[0].startswith("the cat ran")


@pytest.mark.parametrize("count", [1, 3, 7])
def test_max_tokens_is_exact(count: int) -> None:
    _, sequence = ask(scripted.engine("a long answer without an end"), greedy(max_tokens=count))
    assert (len(sequence.output), sequence.finish_reason) == (count, "length")


def test_zero_tokens_reads_the_prompt_only() -> None:
    text, sequence = ask(scripted.engine("never said"), greedy(max_tokens=0))
    assert (text, sequence.output, sequence.finish_reason) == ("", [], "length")


def test_a_full_context_ends_with_length() -> None:
    _, sequence = ask(scripted.engine("endless " * 40, ctx_size=48))
    assert (len(sequence), sequence.finish_reason) == (48, "length")


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    llm = scripted.engine("x", ctx_size=32)
    llm.add_request([65] * 31, GREEDY)
    with pytest.raises(ContextError, match="32 tokens; the context holds 32"):
        llm.add_request([65] * 32, GREEDY)
    llm.add_request([65] * 32, greedy(max_tokens=0))  # nothing is to be generated


@pytest.mark.parametrize("prompt", [[], [-1], [272], [1, 10**9]])
def test_a_prompt_of_no_or_unknown_tokens_is_refused(prompt: list[int]) -> None:
    with pytest.raises(ParameterError, match=r"empty|outside 0 to 271"):
        scripted.engine("x").add_request(prompt, GREEDY)


@pytest.mark.parametrize("stop", ["cat", " ca", "t sa", "the cat sat", "at s", "d"])
def test_a_stop_string_over_token_boundaries_is_found_and_not_shown(stop: str) -> None:
    """ "the" is one token, every other letter is one."""
    text, sequence = ask(scripted.engine("I saw the cat sat down"), greedy(stop=(stop,), max_tokens=50))
    assert (text, sequence.finish_reason) == ("I saw the cat sat down".split(stop)[0], "stop")


def test_of_several_stop_strings_the_first_in_the_text_counts() -> None:
    text, _ = ask(scripted.engine("one two three"), greedy(stop=("three", "two", "wo t"), max_tokens=50))
    assert text == "one "


def test_text_held_back_for_a_stop_string_that_never_comes_is_shown_at_the_end() -> None:
    text, sequence = ask(scripted.engine("abc###"), greedy(stop=("####",), max_tokens=6))
    assert (text, sequence.finish_reason) == ("abc###", "length")


def test_no_part_of_a_stop_string_is_shown_before_it_is_whole() -> None:
    llm = scripted.engine("say STOP now")
    sequence = llm.add_request(ids("A"), greedy(stop=("STOP",), max_tokens=50))
    assert all("S" not in output.text for output in llm.run([sequence]))


def test_a_character_of_several_tokens_is_shown_whole() -> None:
    llm = scripted.engine("né 😀!")
    sequence = llm.add_request(ids("A"), greedy(max_tokens=len(ids("né 😀!"))))
    pieces = [output.text for output in llm.run([sequence])]
    assert "".join(pieces) == "né 😀!"
    assert "\ufffd" not in "".join(pieces)


def two_engines() -> LLM:
    tokenizer = tiny.tokenizer()
    scripts = {
        ids(p)[0]: ids(p + t) for p, t in (("A", "first answer, and it is long"), ("B", "second"), ("C", "third one"))
    }
    return LLM(scripted.Scripted(scripts), tokenizer, EngineConfig(max_sequences=4))  # type: ignore[arg-type]


def test_abort_frees_the_blocks_and_leaves_the_others_alone() -> None:
    llm = two_engines()
    first, second = (llm.add_request(ids(p), greedy(max_tokens=n)) for p, n in (("A", 20), ("B", 6)))
    llm.step()
    llm.abort(first)
    assert first.finish_reason == "abort"
    assert not first.blocks
    text = "".join(output.text for output in llm.run([second]))
    assert TOKENIZER.decode(second.output) == "second"
    assert text == "econd"  # the first step's text went to whoever called step()
    assert llm.scheduler.pool.free == llm.scheduler.pool.count


def test_abort_of_a_waiting_or_finished_sequence_is_harmless() -> None:
    llm = scripted.engine("x", max_sequences=1)
    waiting = [llm.add_request(ids("A"), greedy(max_tokens=1)) for _ in range(3)]
    llm.abort(waiting[1])
    for _ in llm.run(waiting):
        pass
    assert [each.finish_reason for each in waiting] == ["length", "abort", "length"]
    llm.abort(waiting[0])
    assert waiting[0].finish_reason == "length"


def test_leaving_the_loop_early_stops_the_work() -> None:
    llm = two_engines()
    sequence = llm.add_request(ids("A"), greedy(max_tokens=100))
    for _ in llm.run([sequence]):
        break
    assert sequence.finish_reason == "abort"
    assert not llm.busy


def test_loops_that_take_turns_get_all_of_their_text() -> None:
    llm = two_engines()
    answers = {"A": "first answer", "B": "second", "C": "third one"}
    loops = [llm.run([llm.add_request(ids(p), greedy(max_tokens=len(ids(answer))))]) for p, answer in answers.items()]
    texts = [""] * len(loops)
    for outputs in itertools.zip_longest(*loops):
        texts = [text + (output.text if output else "") for text, output in zip(texts, outputs, strict=True)]
    assert texts == list(answers.values())


# Numbers that are not numbers.


def broken() -> LLM:
    """The answer to "B" has NaN logits after three tokens."""
    scripts = {ids("A")[0]: ids("A good answer"), ids("B")[0]: [*ids("B"), *ids("bad"), -1], ids("C")[0]: ids("C calm")}
    return LLM(scripted.Scripted(scripts), tiny.tokenizer(), EngineConfig(max_sequences=3))  # type: ignore[arg-type]


def test_nan_logits_end_that_sequence_only() -> None:
    llm = broken()
    sequences = [llm.add_request(ids(p), greedy(max_tokens=5)) for p in "ABC"]
    outputs: list[Output] = []
    while llm.busy:
        outputs += llm.step()
    assert [each.finish_reason for each in sequences] == ["length", "error", "length"]
    assert [TOKENIZER.decode(each.output) for each in sequences] == [" good", "bad", " calm"]
    assert isinstance(sequences[1].error, BitNetError)
    assert sequences[0].error is None
    assert [o.token for o in outputs if o.sequence is sequences[1]][-1] is None
    assert llm.scheduler.pool.free == llm.scheduler.pool.count


def test_run_raises_the_error_after_the_others_are_finished() -> None:
    llm = broken()
    sequences = [llm.add_request(ids(p), greedy(max_tokens=5)) for p in "ABC"]
    with pytest.raises(BitNetError, match="not numbers"):
        for _ in llm.run(sequences):
            pass
    assert [each.finish_reason for each in sequences] == ["length", "error", "length"]


def test_nan_logits_of_a_scored_prompt_are_an_error() -> None:
    llm = broken()
    sequence = llm.add_request(ids("Bxxxxx"), greedy(max_tokens=0), score_from=0)
    with pytest.raises(BitNetError, match="not numbers"):
        for _ in llm.run([sequence]):
            pass


def poisoned(backend: str) -> LLM:
    """A model whose token 200 has an embedding of NaN; the output head is another matrix."""
    source = tiny.Synthetic(tiny.BITNET | {"tie_word_embeddings": False})
    table = source.weights["model.embed_tokens.weight"].dequantize().copy()
    table[200] = np.nan
    source.weights["model.embed_tokens.weight"] = DenseTensor(table)
    return LLM(tiny.load(source, backend), tiny.tokenizer(), EngineConfig(ctx_size=64, max_sequences=3))


@pytest.mark.parametrize("backend", ["reference", *tiny.usable_isas()])
def test_nan_in_the_cache_does_not_reach_the_next_owner_of_a_block(backend: str) -> None:
    params = greedy(max_tokens=8, ignore_eos=True)
    with tiny.isa(backend):
        llm = poisoned("reference" if backend == "reference" else "cpu")
        clean = llm.add_request([5, 6, 7], params)
        list(llm.run([clean]))
        mixed = [llm.add_request(p, params) for p in ([200] * 40, [5, 6, 7], [1, 200])]
        with pytest.raises(BitNetError):
            list(llm.run(mixed))
        again = llm.add_request([5, 6, 7], params)
        list(llm.run([again]))
    assert [each.finish_reason for each in mixed] == ["error", "length", "error"]
    assert mixed[1].output == again.output == clean.output


# Scores.


@pytest.mark.parametrize("chunk", [1, 5, 512])
def test_scores_are_the_log_probabilities_of_the_logits(chunk: int) -> None:
    model, prompt = tiny.load(tiny.Synthetic(tiny.BITNET)), [3, 200, 17, 17, 90, 4, 250, 33]
    logs = log_softmax(tiny.logits(model, prompt))
    llm = LLM(model, tiny.tokenizer(), EngineConfig(chunk=chunk, max_sequences=1, kv="f32"))
    sequence = llm.add_request(prompt, greedy(max_tokens=0, logprobs=3), score_from=0)
    list(llm.run([sequence]))
    scores = sequence.prompt_logprobs
    assert [score.token for score in scores] == prompt[1:]
    np.testing.assert_allclose([s.logprob for s in scores], [logs[i, t] for i, t in enumerate(prompt[1:])], atol=1e-4)
    assert [tuple(t for t, _ in s.top) for s in scores] == [tuple(np.argsort(-row)[:3]) for row in logs[:-1]]


def test_log_probabilities_of_generated_tokens_are_those_of_the_logits() -> None:
    model, prompt = tiny.load(tiny.Synthetic(tiny.BITNET)), [3, 200, 17]
    llm = LLM(model, tiny.tokenizer(), EngineConfig(kv="f32"))
    params = SamplingParams(temperature=1.5, seed=1, max_tokens=6, logprobs=2, repetition_penalty=1.5, ignore_eos=True)
    sequence = llm.add_request(prompt, params)
    list(llm.run([sequence]))
    logs = log_softmax(tiny.logits(model, prompt + sequence.output))[len(prompt) - 1 : -1]
    for row, token, found in zip(logs, sequence.output, sequence.logprobs, strict=True):
        assert found.token == token
        assert found.logprob == pytest.approx(row[token], abs=1e-4)
        assert [value for _, value in found.top] == pytest.approx(sorted(row)[:-3:-1], abs=1e-4)


# The scheduler.


def test_a_step_never_exceeds_the_chunk() -> None:
    llm = scripted.engine("x" * 40, chunk=8, max_sequences=4)
    sequences = [llm.add_request(ids("A" * n), greedy(max_tokens=5)) for n in (30, 3, 17, 9, 1)]
    for _ in llm.run(sequences):
        pass
    assert max(llm.model.tokens_per_step) == 8  # type: ignore[attr-defined]


def test_running_sequences_get_their_token_while_a_long_prompt_is_read() -> None:
    llm = scripted.engine("y" * 200, chunk=8, max_sequences=2)
    short = llm.add_request(ids("A"), greedy(max_tokens=20))
    llm.step()
    llm.add_request(ids("A" * 100), greedy(max_tokens=1))
    before = len(short.output)
    for _ in range(5):
        llm.step()
    assert len(short.output) == before + 5


@pytest.mark.parametrize("field", ["ctx_size", "max_sequences", "chunk", "kv_blocks"])
def test_absurd_sizes_are_refused(field: str) -> None:
    with pytest.raises(ParameterError, match=field):
        EngineConfig(**{field: -1})
