"""The Python that people type."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import bitnet
from bitnet import BitNet, BitNetError, SamplingParams
from bitnet.errors import ContextError, FormatError, ParameterError


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Iterator[BitNet]:
    with BitNet(tiny_gguf, threads=1) as opened:
        yield opened


def test_the_door_opens_on_exactly_what_it_names() -> None:
    assert sorted(bitnet.__all__) == sorted({*bitnet._HOMES, "__version__"})
    assert all(getattr(bitnet, name) is not None for name in bitnet.__all__)


def test_importing_bitnet_needs_neither_numpy_nor_torch() -> None:
    code = "import sys, bitnet; assert not {'numpy', 'torch', 'tokenizers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_running_a_model_imports_no_heavy_extra(tiny_gguf: Path) -> None:
    code = (
        f"import sys; from bitnet import BitNet; BitNet({str(tiny_gguf)!r}).generate('a', max_tokens=2)\n"
        "assert not {'torch', 'transformers', 'tvm', 'triton', 'streamlit', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_instruction_set_is_refused_by_name(tiny_gguf: Path) -> None:
    code = f"from bitnet import BitNet, BitNetError\ntry: BitNet({str(tiny_gguf)!r})\nexcept BitNetError as e: print(e)"
    environment = {**os.environ, "BITNET_ISA": "abacus"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "abacus" in found.stdout
    assert "scalar" in found.stdout


def test_streaming_gives_the_text_of_generate(model: BitNet) -> None:
    whole = model.generate("the end", max_tokens=20, seed=5)
    assert "".join(model.stream("the end", max_tokens=20, seed=5)) == whole


def test_prompts_in_a_list_give_what_each_gives_alone(model: BitNet) -> None:
    prompts = ["a", "the lazy dog", "in the end there was nothing left to say about it", ""]
    together = model.generate(prompts, max_tokens=12, seed=1)
    assert together == [model.generate(prompt, max_tokens=12, seed=1) for prompt in prompts]


def test_several_threads_may_share_a_model(model: BitNet) -> None:
    prompts = [f"thread {i}" for i in range(6)]
    alone = [model.generate(prompt, max_tokens=15, seed=2) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool:
        for _ in range(5):
            together = pool.map(lambda prompt: model.generate(prompt, max_tokens=15, seed=2), prompts)
            assert list(together) == alone


def test_a_closed_model_says_so(tiny_gguf: Path) -> None:
    with BitNet(tiny_gguf) as closed:
        pass
    assert "closed" in repr(closed)
    with pytest.raises(BitNetError, match="is closed"):
        closed.generate("a")


@pytest.mark.parametrize("prompt", [5, None, b"abc", ["a", 3]])
def test_a_prompt_that_is_no_text_is_refused(model: BitNet, prompt: object) -> None:
    with pytest.raises(ParameterError, match="expected a text"):
        model.generate(prompt)  # type: ignore[call-overload]


@pytest.mark.parametrize("path", [5, ""])
def test_a_model_that_is_no_path_is_refused(path: object) -> None:
    with pytest.raises(ParameterError, match="expected a path"):
        BitNet(path)  # type: ignore[arg-type]


@pytest.mark.parametrize("draft", ["lookup", "itself"])
def test_guesses_give_the_same_texts(model: BitNet, tiny_gguf: Path, draft: str) -> None:
    prompts = ["the", "the lazy dog, the lazy dog, the lazy", "a"]
    options: dict[str, Any] = {"max_tokens": 30, "temperature": 0.4, "seed": 3, "ignore_eos": True}
    with BitNet(tiny_gguf, draft=tiny_gguf if draft == "itself" else draft, draft_tokens=6) as guessing:
        assert guessing.generate(prompts, **options) == model.generate(prompts, **options)
        assert guessing.stats is not None and 0 <= guessing.stats.accepted <= guessing.stats.drafted
        assert guessing.stats.generated_tokens == guessing.stats.steps + guessing.stats.accepted


@pytest.mark.parametrize("draft", ["", 5])
def test_a_draft_that_is_no_path_is_refused(tiny_gguf: Path, draft: Any) -> None:
    with pytest.raises(ParameterError, match="draft is"):
        BitNet(tiny_gguf, draft=draft)


def test_a_context_may_slide(tiny_gguf: Path) -> None:
    with BitNet(tiny_gguf, ctx_size=32, ctx_overflow="slide", ctx_keep=3) as small:
        small.generate("a long prompt indeed, and longer than that", max_tokens=50, seed=1, ignore_eos=True)
        assert small.stats is not None and small.stats.generated_tokens == 50
        assert small.stats.slid > small.stats.prompt_tokens + 50 - 32


def test_no_prompts_give_no_texts(model: BitNet) -> None:
    assert model.generate([], max_tokens=5) == []


def test_a_loop_left_early_frees_its_blocks(model: BitNet) -> None:
    free = model.llm.scheduler.pool.free
    stream = model.stream("the", max_tokens=50, ignore_eos=True)
    next(stream)
    stream.close()
    assert model.llm.scheduler.pool.free == free
    assert not model.llm.busy


def test_a_chat_is_the_template_of_its_messages(model: BitNet) -> None:
    messages = [{"role": "user", "content": "hello"}]
    ids = model.chat_template.apply(messages, model.tokenizer)
    params = SamplingParams(max_tokens=8, seed=3, stop=model.chat_template.stop)
    assert model.chat("hello", max_tokens=8, seed=3) == "".join(model.stream_ids(ids, params))


def test_scores_are_those_of_greedy_choices(model: BitNet) -> None:
    scores = model.score("the lazy dog", top=3)
    ids = model.tokenize("the lazy dog")
    assert [score.token for score in scores] == ids[1:]
    assert all(score.logprob <= score.top[0][1] for score in scores)


def test_token_ids_come_back_as_text(model: BitNet) -> None:
    assert model.detokenize(model.tokenize("Grüße, 世界 🙂")) == "Grüße, 世界 🙂"


def test_stats_count_what_was_done(model: BitNet) -> None:
    model.generate("the", max_tokens=7, ignore_eos=True)
    assert model.stats is not None
    assert (model.stats.prompt_tokens, model.stats.generated_tokens) == (len(model.tokenize("the")), 7)
    assert model.stats.finish_reason == "length"


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"top_p": 2}, {"top_k": 1.5}, {"stop": [""]}, {"max_tokens": -1}, {"seed": "x"}, {"nope": 1}],
)
def test_absurd_options_are_refused_by_name(model: BitNet, options: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=next(iter(options))):
        model.generate("a", **options)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "options", [{"ctx_size": -1}, {"kv": "f8"}, {"head": "half"}, {"max_sequences": 0}, {"size": 1}, {"threads": -1}]
)
def test_absurd_sizes_are_refused_by_name(tiny_gguf: Path, options: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=next(iter(options))):
        BitNet(tiny_gguf, **options)  # type: ignore[arg-type]


def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(tiny_gguf: Path) -> None:
    refusal = r"\d+ tokens; the context holds 16"
    with BitNet(tiny_gguf, ctx_size=16) as small, pytest.raises(ContextError, match=refusal):
        small.generate("a long prompt indeed, and longer")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(FormatError):
        BitNet(path)


def test_every_error_is_a_bitnet_error() -> None:
    assert issubclass(FormatError, BitNetError)
    assert issubclass(ParameterError, ValueError)
