"""What a prompt shares with an earlier one is not computed again, and the answer says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving

ASK = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
TEXT = list(range(1, 81))


@pytest.fixture(scope="module")
def fresh(tiny_gguf: Path) -> Iterator[serving.Client]:
    with serving.serving(serving.opener(tiny_gguf, ctx_size=256)) as client:
        yield client


def complete(client: serving.Client, prompt: list[int], **options: Any) -> Any:
    return client.post("/v1/completions", json={"prompt": prompt, **ASK, **options}).json()


def counter(client: serving.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"bitnet_prefix_cache_{name}_total"))


def told(answer: Any) -> tuple[int, int, int, str]:
    timings = answer["timings"]
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached, timings["cache_n"], timings["prompt_n"], timings["cache_miss"]


def test_how_much_was_cached_and_why_not_more(fresh: serving.Client) -> None:
    first, again = complete(fresh, TEXT), complete(fresh, TEXT)
    assert (told(first), told(again)) == ((0, 0, 80, "first"), (64, 64, 16, ""))
    assert first["choices"] == again["choices"]
    other = complete(fresh, [*TEXT[:40], *TEXT[:40]])
    assert told(other) == (32, 32, 48, "diverged at token 40")
    assert (counter(fresh, "queries"), counter(fresh, "hits")) == (240, 96)


def test_the_next_turn_of_a_conversation_finds_the_turns_before(fresh: serving.Client) -> None:
    messages = [{"role": "user", "content": "Tell me of the sea and of those who sail on it."}]
    body = {"messages": messages, **ASK, "max_tokens": 40}
    answer = fresh.post("/v1/chat/completions", json=body).json()
    said = answer["choices"][0]["message"]
    body["messages"] = [*messages, said, {"role": "user", "content": "And then?"}]
    usage = fresh.post("/v1/chat/completions", json=body).json()["usage"]
    before = answer["usage"]["prompt_tokens"]
    assert before - 16 <= usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]


def test_several_answers_read_the_prompt_once(fresh: serving.Client) -> None:
    hits = counter(fresh, "hits")
    answer = complete(fresh, TEXT[::-1], n=3, temperature=1)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert counter(fresh, "hits") - hits == 2 * 64


def test_switched_off_every_prompt_is_computed(tiny_gguf: Path) -> None:
    with serving.serving(serving.opener(tiny_gguf, ctx_size=256, prefix_cache=False)) as client:
        assert [told(complete(client, TEXT)) for _ in range(2)] == [(0, 0, 80, "disabled")] * 2
