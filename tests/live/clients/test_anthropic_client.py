"""Anthropic's own client against the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import serving
import speaker

anthropic = pytest.importorskip("anthropic")

from bitnet import BitNet

GREEDY: Any = {"extra_body": {"temperature": 0}}  # which the newest client has no name for
STORY = [{"role": "user", "content": "Tell me a story."}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Oslo", "Bergen"]}}, "required": ["city"],
          "additionalProperties": False}  # fmt: skip
TOOL = {"name": "weather", "description": "Says.", "input_schema": SCHEMA}


def connected(server: serving.Client, **options: Any) -> Any:
    return anthropic.Anthropic(base_url=str(server.base_url), max_retries=0, **{"api_key": "key", **options})


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Of a server with the built-in model."""
    with serving.serving({"stories": lambda: BitNet(threads=1)}) as server, connected(server) as found:
        yield found


@pytest.fixture(scope="module")
def caller() -> Iterator[Any]:
    """Of a server whose model thinks, says something, and calls the tool."""
    with speaker.speaking(f"<think>\nOslo?\n</think>\n\nLet me see.\n{CALL}") as server, connected(server) as found:
        yield found


def test_messages(client: Any) -> None:
    found = client.messages.create(
        model="stories",
        max_tokens=9,
        messages=STORY,
        system="Be kind.",
        metadata={"user_id": "me"},
        extra_body={"temperature": 0},
    )
    assert found.type == "message" and found.role == "assistant" and found.stop_reason == "max_tokens"
    assert found.content[0].text and found.usage.output_tokens == 9
    with client.messages.stream(
        model="stories",
        max_tokens=9,
        messages=STORY,
        system=[{"type": "text", "text": "Be kind."}],
        extra_body={"temperature": 0},
    ) as stream:
        assert "".join(stream.text_stream) == found.content[0].text
        assert stream.get_final_message().usage.output_tokens == 9


def test_the_count_is_what_is_used(client: Any) -> None:
    for more in ({}, {"system": "Be kind."}, {"tools": [TOOL]}):
        found = client.messages.create(model="stories", max_tokens=1, messages=STORY, **more).usage
        counted = client.messages.count_tokens(model="stories", messages=STORY, **more).input_tokens
        assert counted == found.input_tokens + found.cache_read_input_tokens


def test_stop_sequences(client: Any) -> None:
    found = client.messages.create(model="stories", max_tokens=200, messages=STORY, stop_sequences=["zzz", "."])
    assert found.stop_reason == "stop_sequence" and found.stop_sequence == "." and "." not in found.content[0].text


def test_tools_and_thoughts(caller: Any) -> None:
    found = caller.messages.create(model="tiny", max_tokens=500, messages=STORY, tools=[TOOL])
    thought, text, call = found.content
    assert (thought.thinking, text.text, call.name, call.input) == ("Oslo?", "Let me see.", "weather", {"city": "Oslo"})
    assert found.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    turns = [*STORY, {"role": "assistant", "content": found.content}, {"role": "user", "content": [result]}]
    assert caller.messages.create(model="tiny", max_tokens=500, messages=turns, tools=[TOOL]).stop_reason == "tool_use"


def test_events_in_their_order(caller: Any) -> None:
    events = list(caller.messages.create(model="tiny", max_tokens=500, messages=STORY, tools=[TOOL], stream=True))
    kinds = [event.type for event in events]
    shown = [kind for kind, before in zip(kinds, [None, *kinds]) if kind != before]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert shown == ["message_start", *block, *block, *block, "message_delta", "message_stop"]
    with caller.messages.stream(model="tiny", max_tokens=500, messages=STORY, tools=[TOOL]) as stream:
        final = stream.get_final_message()
    assert [each.type for each in final.content] == ["thinking", "text", "tool_use"]
    assert final.content[2].input == {"city": "Oslo"} and final.stop_reason == "tool_use"


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_model_without_tools_calls_one_that_it_must(client: Any, choice: Any) -> None:
    more = {"disable_parallel_tool_use": True}
    found = client.messages.create(
        model="stories", max_tokens=200, messages=STORY, tools=[TOOL], tool_choice={**choice, **more}
    )
    [call] = found.content
    assert call.type == "tool_use" and call.input["city"] in ("Oslo", "Bergen")


def test_a_format(client: Any) -> None:
    wanted = {"format": {"type": "json_schema", "schema": {"enum": ["yes", "no"]}}}
    found = client.messages.create(model="stories", max_tokens=50, messages=STORY, output_config=wanted)
    assert found.content[0].text in ('"yes"', '"no"')


def test_errors_are_of_the_right_class(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        client.messages.create(model="other", max_tokens=5, messages=STORY)
    image = {"type": "image", "source": {"type": "url", "url": "http://localhost:1/x.png"}}
    for content, words in (
        ([image], "read text only"),
        ("a " * 3000, "context length"),
        ([{"type": "text"}], "no text"),
    ):
        with pytest.raises(anthropic.BadRequestError, match=words) as caught:
            client.messages.create(model="stories", max_tokens=5, messages=[{"role": "user", "content": content}])
        assert caught.value.body["type"] == "error"
    with pytest.raises(anthropic.BadRequestError, match="assistant"):
        client.messages.create(model="stories", max_tokens=5, messages=[*STORY, {"role": "assistant", "content": "A"}])


def test_a_wrong_key() -> None:
    """It comes as x-api-key."""
    model = serving.stand(serving.Paced())
    with serving.serving(model, api_key=("right",)) as server, connected(server) as client:
        with pytest.raises(anthropic.AuthenticationError):
            client.messages.create(model="tiny", max_tokens=2, messages=STORY)
        with connected(server, api_key="right") as right:
            assert right.messages.create(model="tiny", max_tokens=2, messages=STORY).usage.output_tokens == 2
