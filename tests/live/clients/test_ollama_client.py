"""Ollama's own client against the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import serving
import speaker

ollama = pytest.importorskip("ollama")

from bitnet import BitNet

STORY = [{"role": "user", "content": "Tell me a story."}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


def weather(city: str) -> str:
    """How it is there.

    Args:
        city: its name
    """
    return "rain"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Of a server with the built-in model."""
    with serving.serving({"stories": lambda: BitNet(threads=1)}) as server:
        yield ollama.Client(host=str(server.base_url))


@pytest.fixture(scope="module")
def caller() -> Iterator[Any]:
    """Of a server whose model thinks, says something, and calls the tool."""
    with speaker.speaking(f"<think>\nOslo?\n</think>\n\nLet me see.\n{CALL}") as server:
        yield ollama.Client(host=str(server.base_url))


def test_chat(client: Any) -> None:
    options = {"num_predict": 9, "seed": 4, "temperature": 0.7, "top_k": 20, "repeat_penalty": 1.1, "num_ctx": 99}
    whole = client.chat("stories:latest", STORY, options=options, keep_alive="5m")
    assert whole.done and whole.done_reason == "length" and whole.eval_count == 9 and whole.total_duration > 0
    assert whole.prompt_eval_count > 0 and whole.eval_duration > 0
    *pieces, last = list(client.chat("stories", STORY, options=options, stream=True))
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert last.done and last.eval_count == 9 and not any(piece.done for piece in pieces)


def test_generate(client: Any) -> None:
    options = {"num_predict": 8, "temperature": 0}
    whole = client.generate("stories", "Tell me a story.", system="Be kind.", options=options)
    pieces = list(client.generate("stories", "Tell me a story.", system="Be kind.", options=options, stream=True))
    assert "".join(piece.response for piece in pieces) == whole.response != ""
    raw = client.generate("stories", "Once upon", raw=True, options=options)
    assert raw.response != whole.response and raw.prompt_eval_count < whole.prompt_eval_count
    stopped = client.generate("stories", "Tell me a story.", options={"temperature": 0, "stop": ["."]})
    assert stopped.done_reason == "stop" and "." not in stopped.response


def test_formats(client: Any) -> None:
    assert set(json.loads(client.chat("stories", STORY, format=SCHEMA).message.content)) == {"ok"}
    assert set(json.loads(client.generate("stories", "Hi", format=SCHEMA).response)) == {"ok"}
    assert client.generate("stories", "Hi", format="json", options={"num_predict": 5}).response.startswith("{")


def test_tools_and_thoughts(caller: Any) -> None:
    message = caller.chat("tiny", STORY, tools=[weather], think=True).message
    assert message.thinking == "Oslo?" and message.content == "Let me see."
    [call] = message.tool_calls
    assert call.function.name == "weather" and call.function.arguments == {"city": "Oslo"}
    result = {"role": "tool", "tool_name": "weather", "content": weather(**call.function.arguments)}
    assert caller.chat("tiny", [*STORY, message, result], tools=[weather]).message.tool_calls
    pieces = list(caller.chat("tiny", STORY, tools=[weather], stream=True))
    calls = [call for piece in pieces for call in piece.message.tool_calls or []]
    assert [call.function.arguments for call in calls] == [{"city": "Oslo"}]
    assert "".join(piece.message.thinking or "" for piece in pieces) == "Oslo?"


def test_logprobs(client: Any) -> None:
    found = client.generate("stories", "Hi", logprobs=True, top_logprobs=2, options={"num_predict": 4})
    assert len(found.logprobs) == 4 and all(len(entry.top_logprobs) == 2 for entry in found.logprobs)


def test_models(client: Any) -> None:
    [listed] = client.list().models
    assert listed.model == "stories" and listed.size > 0
    [running] = client.ps().models
    assert running.model == "stories" and running.expires_at.year > 2100
    shown = client.show("stories")
    assert shown.modelinfo["bitnet.context_length"] == running.context_length and "completion" in shown.capabilities


def test_loading(client: Any) -> None:
    assert client.generate("stories").done_reason == "load"
    assert client.chat("stories").done_reason == "load"


def test_embeddings(client: Any) -> None:
    several = client.embed("stories", ["a story", "another"])
    assert len(several.embeddings) == 2 and several.prompt_eval_count > 2
    assert client.embed("stories", "a story").embeddings[0] == pytest.approx(several.embeddings[0], abs=1e-6)
    assert list(client.embeddings("stories", "a story").embedding) == pytest.approx(several.embeddings[0], abs=1e-6)
    assert len(client.embed("stories", "a", dimensions=8).embeddings[0]) == 8


def test_errors_say_why(client: Any) -> None:
    for ask, status, words in (
        (lambda: client.chat("other", STORY), 404, "no model"),
        (lambda: client.chat("stories", [{"role": "user", "content": "a " * 3000}]), 400, "context length"),
        (lambda: client.chat("stories", [{"role": "user", "content": "a", "images": [b"x"]}]), 400, "read text only"),
        (lambda: client.generate("stories", "a", suffix="b"), 400, "suffix"),
        (lambda: client.generate("stories", "a", options={"mirostat": 2}), 400, "mirostat"),
        (lambda: client.generate("stories", "a", options={"temprature": 2}), 400, "temperature"),
        (lambda: client.pull("llama"), 501, "--model"),
        (lambda: client.delete("stories"), 501, "--model"),
    ):
        with pytest.raises(ollama.ResponseError, match=words) as caught:
            ask()
        assert caught.value.status_code == status
