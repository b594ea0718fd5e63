"""POST /v1/chat/completions: what it answers, whole and in a stream."""

from __future__ import annotations

from typing import Any

import pytest
import serving

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "the end"}], "max_tokens": 12, "seed": 3}


def text(events: list[Any], index: int = 0) -> str:
    choices = [choice for event in events[:-1] for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices if choice["index"] == index)


def test_an_answer_is_what_the_model_says(client: serving.Client) -> None:
    found = client.post(CHAT, json=ASK).json()
    model = client.app.state.server.registry.loaded["tiny"].model
    with serving.opener(model.path, ctx_size=256)() as alone:
        assert found["choices"][0]["message"]["content"] == alone.chat("the end", max_tokens=12, seed=3)
    assert found["object"] == "chat.completion" and found["model"] == "tiny"
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["completion_tokens"] == 12
    assert found["timings"]["predicted_n"] == 12


def test_a_stream_gives_the_same_text_in_the_shape_that_clients_expect(client: serving.Client) -> None:
    whole = client.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"]
    events = client.events(CHAT, **ASK)
    assert events[-1] == "[DONE]" and text(events) == whole
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len({event["id"] for event in events[:-1]}) == 1
    *_, last = events[:-1]
    assert last["choices"][0]["delta"] == {} and last["choices"][0]["finish_reason"] == "length"
    assert "usage" not in last and last["timings"]["predicted_n"] == 12


def test_usage_comes_last_where_it_is_wanted(client: serving.Client) -> None:
    events = client.events(CHAT, **ASK, stream_options={"include_usage": True})
    assert events[-2]["choices"] == [] and events[-2]["usage"]["completion_tokens"] == 12
    assert all(event["usage"] is None for event in events[:-2])


def test_choices_differ_and_the_first_is_what_one_alone_would_be(client: serving.Client) -> None:
    one = client.post(CHAT, json=ASK).json()["choices"][0]["message"]["content"]
    several = client.post(CHAT, json={**ASK, "n": 3}).json()
    texts = [choice["message"]["content"] for choice in several["choices"]]
    assert texts[0] == one and len(set(texts)) == 3
    assert several["usage"]["completion_tokens"] == 36
    assert several["usage"]["prompt_tokens"] == client.post(CHAT, json=ASK).json()["usage"]["prompt_tokens"]
    events = client.events(CHAT, **ASK, n=3)
    assert [text(events, index) for index in range(3)] == texts


def test_the_newer_and_the_older_name_of_max_tokens(client: serving.Client) -> None:
    newer = client.post(CHAT, json={**ASK, "max_completion_tokens": 3}).json()
    assert newer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_belong_to_the_tokens_of_the_text(client: serving.Client, stream: bool) -> None:
    ask = {**ASK, "logprobs": True, "top_logprobs": 3}
    if stream:
        events = client.events(CHAT, **ask)
        shown, chosen = text(events), [e["choices"][0]["logprobs"] for e in events[:-1]]
        entries = [entry for each in chosen if each for entry in each["content"]]
    else:
        choice = client.post(CHAT, json=ask).json()["choices"][0]
        shown, entries = choice["message"]["content"], choice["logprobs"]["content"]
    assert len(entries) == 12
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace") == shown
    for entry in entries:
        assert entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 3
        assert entry["top_logprobs"] == sorted(entry["top_logprobs"], key=lambda e: -e["logprob"])


def test_developer_is_another_word_for_system(client: serving.Client) -> None:
    answers = [
        client.post(CHAT, json={**ASK, "messages": [{"role": role, "content": "Be brief."}, *ASK["messages"]]}).json()
        for role in ("system", "developer")
    ]
    assert answers[0]["choices"] == answers[1]["choices"]


def test_a_model_is_named_or_the_default(client: serving.Client) -> None:
    assert client.post(CHAT, json={**ASK, "model": "tiny"}).status_code == 200
    missing = client.post(CHAT, json={**ASK, "model": "../../etc/passwd"})
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found" and missing.json()["error"]["param"] == "model"
