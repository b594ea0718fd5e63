"""Conversations with tools in them, as the model's template can take them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bitnet.server.tool_calls import BEGIN, END

Message = Mapping[str, Any]
RESPONSE = "<tool_response>\n{}\n</tool_response>"
# For templates that know no tools; what Hermes and Qwen were trained on is much like it.
INSTRUCTIONS = """You may call tools to help with the request. These are the tools, each as JSON:
<tools>
{}
</tools>
To call one, answer with its name and its arguments as JSON between tags:
<tool_call>
{{"name": "NAME", "arguments": {{...}}}}
</tool_call>"""


def adapted(
    template: str, messages: Sequence[Message], variables: Mapping[str, Any]
) -> tuple[list[Message], dict[str, Any]]:
    """The messages and the variables for this template."""
    messages, variables = with_names(messages), dict(variables)
    tools = variables.get("tools") or None
    if tools and not re.search(r"\btools\b", template):
        messages = instructed(messages, INSTRUCTIONS.format("\n".join(map(to_json, tools))))
        tools = None
    variables["tools"] = tools
    if "tool_calls" in template:
        return [with_objects(message) for message in messages], variables
    return in_words(messages), variables


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def with_names(messages: Sequence[Message]) -> list[Message]:
    """Results say the name of their tool, which clients leave out and some templates want; no content is ""."""
    names: dict[Any, str] = {}
    found: list[Message] = []
    for message in messages:
        if message.get("tool_calls"):
            names |= {call.get("id"): call["function"]["name"] for call in message["tool_calls"]}
            message = {**message, "content": message.get("content") or ""}
        name = names.get(message.get("tool_call_id"))
        found.append({"name": name, **message} if message["role"] == "tool" and name else message)
    return found


def instructed(messages: list[Message], instructions: str) -> list[Message]:
    """The instructions at the end of the system's message, or as one."""
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": instructions}, *messages]
    return [{**first, "content": f"{plain(first.get('content'))}\n\n{instructions}"}, *messages[1:]]


def plain(content: Any) -> str:
    """Of a text or of parts of one; what is neither is refused elsewhere."""
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content)
    return content or ""


def with_objects(message: Message) -> Message:
    """Arguments as objects, which templates write down as JSON themselves."""
    if not message.get("tool_calls"):
        return message
    calls = [{**call, "function": with_object(call["function"])} for call in message["tool_calls"]]
    return {**message, "tool_calls": calls}


def with_object(function: Message) -> Message:
    try:
        value = json.loads(function["arguments"])
    except (ValueError, TypeError, RecursionError):
        return function  # cut short, perhaps
    return {**function, "arguments": value} if isinstance(value, dict) else function


def in_words(messages: list[Message]) -> list[Message]:
    """Calls as the model writes them, and results as the user's: together, where there are several."""
    found: list[Message] = []
    for message in messages:
        calls = message.get("tool_calls")
        if calls:
            spoken = [plain(message.get("content")), *(f"{BEGIN}\n{call_text(call)}\n{END}" for call in calls)]
            message = {"role": message["role"], "content": "\n".join(filter(None, spoken))}
        elif message["role"] in ("tool", "function"):
            result = RESPONSE.format(plain(message.get("content")))
            if found and found[-1].get("results"):
                result = f"{found.pop()['content']}\n{result}"
            message = {"role": "user", "content": result, "results": True}
        found.append(message)
    return found


def call_text(call: Message) -> str:
    function = with_object(call["function"])
    return to_json({"name": function["name"], "arguments": function["arguments"]})
