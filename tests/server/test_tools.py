"""Tools over HTTP: what the template is told, what the model is held to, and how its calls come back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import serving
import speaker
import tiny

from bitnet.server.tool_prompt import adapted
from bitnet.tokenizer import Tokenizer
from bitnet.tokenizer.chat import CHATML, ChatTemplate

CHAT = "/v1/chat/completions"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"enum": [1, 2]}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


def tool(name: str, parameters: Any = PARAMETERS, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "Says.", "parameters": parameters, **more}}


TOOLS = [tool("weather"), tool("now", None)]
SAID = '{"name": "weather", "arguments": {"city": "Oslo", "days": 1}}'
TAGGED = f"Let me see.\n<tool_call>\n{SAID}\n</tool_call>"
ASK = {"messages": [{"role": "user", "content": "How is Oslo?"}], "temperature": 0, "max_tokens": 200}


def ask(client: serving.Client, **more: Any) -> dict[str, Any]:
    response = client.post(CHAT, json={**ASK, "tools": TOOLS, **more})
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def streamed(client: serving.Client, **more: Any) -> tuple[dict[str, Any], str]:
    """The message that the deltas of a stream add up to, as OpenAI's client adds them, and the reason."""
    message: dict[str, Any] = {"content": "", "tool_calls": []}
    reason = ""
    for event in client.events(CHAT, **ASK, tools=TOOLS, **more)[:-1]:
        [choice] = event["choices"]
        delta, reason = choice["delta"], choice["finish_reason"] or reason
        message["content"] += delta.get("content") or ""
        if "reasoning_content" in delta:
            message["reasoning_content"] = message.get("reasoning_content", "") + delta["reasoning_content"]
        for call in delta.get("tool_calls", []):
            if call["index"] == len(message["tool_calls"]):
                assert call["type"] == "function" and call["function"]["arguments"] == ""
                message["tool_calls"].append({**call, "function": dict(call["function"])})
            else:
                assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
                message["tool_calls"][call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return message, reason


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    functions = [call["function"] for call in message.get("tool_calls") or []]
    return [(function["name"], json.loads(function["arguments"])) for function in functions]


@pytest.mark.parametrize("template, text, content", [
    (speaker.HERMES, TAGGED, "Let me see."), (speaker.LLAMA, SAID.replace("arguments", "parameters"), None),
])  # fmt: skip
def test_a_call_comes_back_as_one(template: str, text: str, content: str | None) -> None:
    with speaker.speaking(text, template) as client:
        choice = ask(client)
        message, reason = streamed(client)
    assert choice["finish_reason"] == reason == "tool_calls"
    assert choice["message"]["content"] == content and message["content"] == (content or "")
    assert calls_of(choice["message"]) == calls_of(message) == [("weather", {"city": "Oslo", "days": 1})]
    assert choice["message"]["tool_calls"][0]["id"].startswith("call_")


def test_thoughts_come_before_calls() -> None:
    with speaker.speaking(f"<think>\nOslo?\n</think>\n\n{TAGGED}") as client:
        for message in (ask(client)["message"], streamed(client)[0]):
            assert message["reasoning_content"] == "Oslo?" and message["content"] == "Let me see."
            assert len(calls_of(message)) == 1


def test_two_calls_and_one() -> None:
    with speaker.speaking(f"{TAGGED}\n<tool_call>\n{SAID}\n</tool_call>") as client:
        ids = [call["id"] for call in ask(client)["message"]["tool_calls"]]
        assert len(set(ids)) == 2
        assert len(calls_of(ask(client, parallel_tool_calls=False)["message"])) == 1


def test_what_is_cut_short_ends_with_length() -> None:
    with speaker.speaking(TAGGED) as client:
        cut = len(tiny.tokenizer().encode(TAGGED[: TAGGED.index("slo")], add_special=False))
        choice = ask(client, max_tokens=cut)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "O'


@pytest.mark.parametrize("more", [{"tool_choice": "none"}, {"tools": []}, {"tools": None},
                                  {"tools": [tool("another")]}])  # fmt: skip
def test_without_that_tool_it_is_text(more: dict[str, Any]) -> None:
    with speaker.speaking(TAGGED) as client:
        choice = ask(client, **more)
    assert choice["message"]["content"] == TAGGED and "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


FORCED: list[tuple[Any, set[str]]] = [
    ("required", {"weather", "now"}),
    ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
        {"type": "function", "function": {"name": "weather"}}]}}, {"weather"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def random_model(tiny_gguf: Path) -> Iterator[serving.Client]:
    """One whose prompts are short enough for tools."""

    def opened() -> Any:
        model = serving.opener(tiny_gguf)()
        model.chat_template = ChatTemplate(speaker.HERMES, "plain")
        return model

    with serving.serving(opened) as client:
        yield client


@pytest.mark.parametrize("choice, names", FORCED)
def test_a_random_model_calls_what_it_must(random_model: serving.Client, choice: Any, names: set[str]) -> None:
    ended = 0
    for seed in range(5):
        options = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "max_tokens": 150, "seed": seed}
        found = ask(random_model, tool_choice=choice, parallel_tool_calls=False, **options)
        if found["finish_reason"] != "length":
            [(name, arguments)] = calls_of(found["message"])
            assert name in names and found["message"]["content"] is None
            jsonschema.validate(arguments, PARAMETERS if name == "weather" else {"type": "object"})
            ended += 1
    assert ended


def test_strict_tools_are_called_as_they_take_it(client: serving.Client) -> None:
    """A model that would write something else in a call cannot."""
    bad = '<tool_call>\n{"name": "weather", "arguments": {"city": 5}}\n</tool_call>'
    strict = [tool("weather", strict=True)]
    with speaker.speaking(bad) as speaking:
        assert calls_of(ask(speaking)["message"]) == [("weather", {"city": 5})]
        arguments = ask(speaking, tools=strict)["message"]["tool_calls"][0]["function"]["arguments"]
        assert arguments.startswith('{"city": "')
    with speaker.speaking("No tool <b> is needed.") as speaking:
        assert ask(speaking, tools=strict)["message"]["content"] == "No tool <b> is needed."


def test_a_format_is_for_the_answer_and_calls_go_on() -> None:
    wanted = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no"]}}}}
    with speaker.speaking(f"<tool_call>\n{SAID}\n</tool_call>") as client:
        assert len(calls_of(ask(client, **wanted)["message"])) == 1
    with speaker.speaking('"no"') as client:
        assert ask(client, **wanted)["message"]["content"] == '"no"'


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [tool("a b")]}, "no name of a tool"),
    ({"tools": [tool("a"), tool("a")]}, "same name"),
    ({"tools": [tool(f"t{i}") for i in range(129)]}, "tools"),
    ({"tools": [], "tool_choice": "required"}, "needs tools"),
    ({"tools": None, "tool_choice": "required"}, "needs tools"),
    ({"tool_choice": "sometimes"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "no such tool"),
    ({"tools": [tool("a", {"$ref": "http://x/y"})], "tool_choice": "required"}, "not fetched"),
    ({"tools": [tool("a", {"type": "object", "not": {}})], "tool_choice": "required"}, "kept to"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "tool_calls[0].function"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": {}}}]}]}, "arguments"),
]


@pytest.mark.parametrize("more, words", MISTAKES)
def test_mistakes_are_told(client: serving.Client, more: dict[str, Any], words: str) -> None:
    response = client.post(CHAT, json={**ASK, "tools": TOOLS, **more})
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"]


HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "Oslo?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "noon"}]},
    {"role": "assistant", "content": "Rain."},
]  # fmt: skip
CALLS_IN_WORDS = """<tool_call>
{"name": "weather", "arguments": {"city": "Oslo"}}
</tool_call>
<tool_call>
{"name": "now", "arguments": {}}
</tool_call>"""
RESULTS_IN_WORDS = """<tool_response>
rain
</tool_response>
<tool_response>
noon
</tool_response>"""


def test_a_template_that_knows_no_tools_is_told_in_words() -> None:
    messages, variables = adapted(CHATML, HISTORY, {"tools": TOOLS})
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert all(json.dumps(each) in messages[0]["content"] for each in TOOLS) and variables["tools"] is None
    assert messages[2]["content"] == CALLS_IN_WORDS and messages[3]["content"] == RESULTS_IN_WORDS
    system = [{"role": "system", "content": "Be brief."}, *HISTORY]
    text = adapted(CHATML, system, {"tools": TOOLS})[0][0]["content"]
    assert text == "Be brief.\n\n" + messages[0]["content"]
    assert adapted(CHATML, HISTORY[:1], {})[0] == HISTORY[:1]
    assert adapted(CHATML, [{**HISTORY[-1], "tool_calls": []}], {})[0] == HISTORY[-1:]


def test_a_template_that_knows_them_gets_objects_and_names() -> None:
    source = "{% for m in messages %}{{ m.name }}|{{ m.content }}|{% for c in m.tool_calls or [] %}" \
             "{{ c.function.arguments | tojson }}{% endfor %};{% endfor %}{{ tools | length }}"  # fmt: skip
    messages, variables = adapted(source, HISTORY, {"tools": TOOLS})
    text = ChatTemplate(source).render(messages, tiny.tokenizer(), **variables)
    assert text == '|Oslo?|;||{"city": "Oslo"}{};weather|rain|;now|noon|;|Rain.|;2'


def test_arguments_that_are_no_json_stay_as_they_are() -> None:
    call = {"id": "1", "function": {"name": "a", "arguments": '{"cut'}}
    messages, _ = adapted("tools tool_calls", [{"role": "assistant", "tool_calls": [call]}], {})
    assert messages[0]["tool_calls"] == [call]


def test_the_conversation_after_a_call_is_answered_and_shown(client: serving.Client) -> None:
    body = {"messages": [*HISTORY, {"role": "user", "content": "Thanks"}], "tools": TOOLS}
    prompt = client.post("/apply-template", json=body).json()["prompt"]
    assert CALLS_IN_WORDS in prompt and RESULTS_IN_WORDS in prompt and "<tools>" in prompt
    assert len(client.post("/tokenize", json=body).json()["tokens"]) > 200


def test_earlier_thoughts_reach_templates_that_show_them() -> None:
    source = "{{ bos_token }}{% for m in messages %}[{{ m.reasoning_content }}]{% endfor %}"
    with speaker.speaking("a", source) as client:
        for name in ("reasoning_content", "reasoning"):
            messages = [{"role": "assistant", "content": "b", name: "hm"}]
            assert "[hm]" in client.post("/apply-template", json={"messages": messages}).json()["prompt"]


def with_marks() -> Tokenizer:
    """The tiny one, in which the tags are control tokens, as in some models."""
    metadata = tiny.tokenizer().to_gguf()
    tokens, types = [list(metadata[f"tokenizer.ggml.{name}"]) for name in ("tokens", "token_type")]
    for i, name in enumerate(("<think>", "</think>", "<tool_call>", "</tool_call>"), 263):
        tokens[i : i + 1], types[i : i + 1] = [name], [3]
    return Tokenizer.from_gguf({**metadata, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types,
                                "general.architecture": "tiny", "tiny.vocab_size": 272})  # fmt: skip


def test_tags_that_are_control_tokens() -> None:
    with speaker.speaking(f"<think>\nOslo?\n</think>\n\n{TAGGED}", tokenizer=with_marks()) as client:
        for message in (ask(client)["message"], streamed(client)[0]):
            assert message["reasoning_content"] == "Oslo?" and message["content"] == "Let me see."
            assert calls_of(message) == [("weather", {"city": "Oslo", "days": 1})]
    with speaker.speaking("hm <b>\n</think>\n\nyes, surely", speaker.THINKER, tokenizer=with_marks()) as client:
        message = ask(client, regex="yes|no")["message"]
        assert message["reasoning_content"] == "hm <b>" and message["content"] == "yes"
