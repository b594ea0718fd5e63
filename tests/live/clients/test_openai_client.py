"""OpenAI's own client against the server: chat, Responses, tools, formats and errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import serving
import speaker

openai = pytest.importorskip("openai")

from pydantic import BaseModel

from bitnet import BitNet

STORY = [{"role": "user", "content": "Tell me a story."}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Says.", "parameters": PARAMETERS}}
FLAT = {"type": "function", **TOOL["function"]}  # type: ignore[dict-item]


class Verdict(BaseModel):
    mood: Literal["good", "bad"]
    stars: Literal[1, 2, 3]


def connected(server: serving.Client, **options: Any) -> Any:
    return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="key", max_retries=0, **options)


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


def test_chat(client: Any) -> None:
    whole = client.chat.completions.create(model="stories", messages=STORY, max_tokens=20, seed=1)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 20
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model="stories", messages=STORY, max_tokens=20, seed=1, stream=True, stream_options=options
    )
    *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content and last.usage.completion_tokens == 20


def test_logprobs_and_choices(client: Any) -> None:
    found = client.chat.completions.create(
        model="stories", messages=STORY, max_tokens=5, n=2, logprobs=True, top_logprobs=2, logit_bias={"5": -100}
    )
    for choice in found.choices:
        assert len(choice.logprobs.content) == 5 and len(choice.logprobs.content[0].top_logprobs) == 2


def test_a_class_as_the_format(client: Any) -> None:
    for _ in range(3):
        found = client.chat.completions.parse(model="stories", messages=STORY, response_format=Verdict, max_tokens=60)
        assert isinstance(found.choices[0].message.parsed, Verdict)


def test_tools(caller: Any) -> None:
    message = caller.chat.completions.create(model="tiny", messages=STORY, tools=[TOOL]).choices[0].message
    [call] = message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Oslo"}
    assert message.content == "Let me see." and message.reasoning_content == "Oslo?"
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    again = caller.chat.completions.create(model="tiny", messages=[*STORY, message, result], tools=[TOOL])
    assert again.choices[0].finish_reason == "tool_calls"


def test_tools_in_a_stream(caller: Any) -> None:
    with caller.chat.completions.stream(model="tiny", messages=STORY, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        message = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in kinds and "content.delta" in kinds
    assert message.tool_calls[0].function.arguments == '{"city": "Oslo"}' and message.content == "Let me see."


def test_a_model_without_tools_calls_one_that_it_must(client: Any) -> None:
    tools = [openai.pydantic_function_tool(Verdict, name="rate")]
    choice: Any = {"type": "function", "function": {"name": "rate"}}
    found = client.chat.completions.create(model="stories", messages=STORY, tools=tools, tool_choice=choice)
    Verdict.model_validate_json(found.choices[0].message.tool_calls[0].function.arguments)


def test_responses(client: Any) -> None:
    found = client.responses.create(
        model="stories", input="Tell me a story.", instructions="Be kind.", max_output_tokens=9
    )
    assert found.status == "incomplete" and found.incomplete_details.reason == "max_output_tokens"
    assert found.output_text and found.usage.output_tokens == 9
    again = [
        {"role": "user", "content": "Hi"},
        *found.output,
        {"role": "user", "content": [{"type": "input_text", "text": "On"}]},
    ]
    assert client.responses.create(model="stories", input=again, max_output_tokens=3).output_text


def test_events_of_responses_in_their_order(caller: Any) -> None:
    events = list(caller.responses.create(model="tiny", input="Oslo?", stream=True, tools=[FLAT]))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    shown = [kind for kind, before in zip(kinds, [None, *kinds]) if kind != before]
    text = ["content_part.added", "{}.delta", "{}.done", "content_part.done", "output_item.done"]
    assert shown == [
        "created", "in_progress",
        "output_item.added", *(kind.format("reasoning_text") for kind in text),
        "output_item.added", *(kind.format("output_text") for kind in text),
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    thought, said, called = events[-1].response.output
    assert thought.content[0].text == "Oslo?" and said.content[0].text == "Let me see."
    assert (called.name, called.arguments) == ("weather", '{"city": "Oslo"}')
    assert events[-1].response.usage.output_tokens_details.reasoning_tokens > 0


def test_the_stream_helper_of_responses_and_a_result(caller: Any) -> None:
    tools = [FLAT]
    with caller.responses.stream(model="tiny", input="Oslo?", tools=tools) as stream:
        for _ in stream:
            pass
        output = stream.get_final_response().output
    assert [item.type for item in output] == ["reasoning", "message", "function_call"]
    result = {"type": "function_call_output", "call_id": output[2].call_id, "output": "rain"}
    again = caller.responses.create(model="tiny", input=[*STORY, *output, result], tools=tools)
    assert again.status == "completed"


def test_a_class_as_the_format_of_a_response(client: Any) -> None:
    assert isinstance(client.responses.parse(model="stories", input="Hi", text_format=Verdict).output_parsed, Verdict)


@pytest.mark.parametrize("more, words", [
    ({"previous_response_id": "resp_1"}, "not kept"), ({"store": True}, "not kept"),
    ({"tools": [{"type": "web_search"}]}, "function"), ({"truncation": "auto"}, "disabled"),
])  # fmt: skip
def test_what_responses_cannot_do(client: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.responses.create(model="stories", input="Hi", **more)


def test_other_routes(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["stories"]
    vectors = client.embeddings.create(model="stories", input=["a", "b"]).data
    assert len(vectors) == 2 and abs(sum(x * x for x in vectors[0].embedding) - 1) < 1e-4
    found = client.completions.create(model="stories", prompt="Once", max_tokens=3, echo=True, logprobs=1)
    assert found.choices[0].text.startswith("Once") and len(found.choices[0].logprobs.tokens) > 3


def test_errors_are_of_the_right_class(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.chat.completions.create(model="other", messages=STORY)
    with pytest.raises(openai.BadRequestError, match="context length"):
        client.chat.completions.create(model="stories", messages=[{"role": "user", "content": "a " * 3000}])
    image = [{"type": "image_url", "image_url": {"url": "http://localhost:1/x.png"}}]
    with pytest.raises(openai.BadRequestError, match="text") as caught:
        client.chat.completions.create(model="stories", messages=[{"role": "user", "content": image}])
    assert caught.value.type == "invalid_request_error"


def test_a_wrong_key() -> None:
    with serving.serving(serving.stand(serving.Paced()), api_key=("right",)) as server:
        client = connected(server)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert client.with_options(api_key="right").models.list().data
