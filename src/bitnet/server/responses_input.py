"""What clients send to OpenAI's Responses route, read as the chat route reads its conversations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bitnet.engine import SamplingParams
from bitnet.server.conversation import Conversation
from bitnet.server.errors import ApiError
from bitnet.server.grammar import ANY_OBJECT, Grammar, of_schema
from bitnet.server.registry import Served
from bitnet.server.schemas import Request, bounded
from bitnet.server.tools import Named, Tool, ToolUse, tool_use

TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
UNSUPPORTED = {
    "previous_response_id": "Responses are not kept; send the whole conversation as input",
    "conversation": "Conversations are not kept; send the whole conversation as input",
    "prompt": "No prompts are kept here",
    "background": "Responses are not kept, so none can be asked for later",
    "store": "Responses are not kept",
    "moderation": "No model here was trained to moderate",
    "max_tool_calls": "There are no tools that the server calls itself",
}


class Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None


Parts = str | Annotated[list[Part], Field(fail_fast=True)]


class Item(BaseModel):
    """A message, a call, a result or a thought: what it has is looked at when it is read."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Parts | None = None
    summary: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Parts | None = None

    def need(self, name: str, param: str) -> Any:
        value = getattr(self, name)
        if value is None:
            raise ApiError(400, f"{param} has no {name}.", param=param)
        return value


class ToolEntry(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedChoice(Named):
    type: Literal["function"]


class AllowedTools(BaseModel):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedChoice]


class TextFormat(BaseModel):
    """strict: ignored, for every schema is kept to."""

    model_config = ConfigDict(strict=True)

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(Request):
    format: TextFormat | None = None
    verbosity: Any = None  # ignored


class StreamOptions(Request):
    include_obfuscation: Any = None  # ignored


class ResponsesRequest(Request):
    input: str | Annotated[list[Item], Field(min_length=1, fail_fast=True)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, description="tokens to generate at most")
    temperature: float | None = bounded("temperature")
    top_p: float | None = bounded("top_p")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[ToolEntry], Field(fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None
    top_logprobs: Literal[0] | None = None
    metadata: dict[str, Any] | None = None
    # Refused where they are set, by the reasons above.
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    store: bool | None = None
    moderation: Any = None
    max_tool_calls: int | None = None
    # Accepted and ignored: they say nothing about the text.
    reasoning: Any = None
    include: list[str] | None = None
    user: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    prompt_cache_options: Any = None

    def conversation_for(self, served: Served) -> Conversation:
        for name, reason in UNSUPPORTED.items():
            if getattr(self, name):
                raise ApiError(400, f"{name}: {reason}.", param=name, code="unsupported")
        names = ("temperature", "top_p")
        given: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        params = SamplingParams(max_tokens=self.max_output_tokens, **given)
        return Conversation(served, self.messages(), params, grammar=self.grammar, tools=self.tool_use())

    def messages(self) -> list[dict[str, Any]]:
        system = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*system, {"role": "user", "content": self.input}]
        return [*system, *messages_of(self.input)]

    def grammar(self) -> Grammar | None:
        wanted = self.text.format if self.text else None
        if wanted is None or wanted.type == "text":
            return None
        schema = ANY_OBJECT if wanted.type == "json_object" else wanted.schema_
        if schema is None:
            raise ApiError(400, "text.format is a json_schema without a schema.", param="text.format")
        return of_schema(schema, "text.format")

    def tool_use(self) -> ToolUse | None:
        tools = [Tool(t.name, t.description, t.parameters, bool(t.strict)) for t in self.tools or []]
        choice, several = self.tool_choice, self.parallel_tool_calls is not False
        if isinstance(choice, NamedChoice):
            return tool_use(tools, "named", choice.name, several)
        if isinstance(choice, AllowedTools):
            allowed = {each.name for each in choice.tools}
            return tool_use([tool for tool in tools if tool.name in allowed], choice.mode, parallel=several)
        return tool_use(tools, choice or "auto", parallel=several)


def messages_of(items: list[Item]) -> list[dict[str, Any]]:
    """Items as messages: what the assistant thought, said and called one after the other is one of them."""
    found: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        place = f"input[{i}]"
        kind = item.type or ("message" if item.role else "")
        if kind == "message" and item.role != "assistant":
            role = "system" if item.role == "developer" else item.need("role", place)
            found.append({"role": role, "content": text_of(item.need("content", place), f"{place}.content")})
        elif kind == "function_call_output":
            output = text_of(item.need("output", place), f"{place}.output")
            found.append({"role": "tool", "tool_call_id": item.need("call_id", place), "content": output})
        elif kind in ("message", "function_call", "reasoning"):
            if not found or found[-1]["role"] != "assistant":
                found.append({"role": "assistant", "content": ""})
            extend(found[-1], kind, item, place)
        else:
            raise ApiError(400, f"{place} is of type {kind!r:.40}, which is not supported.", param=place)
    return found


def extend(message: dict[str, Any], kind: str, item: Item, place: str) -> None:
    if kind == "message":
        message["content"] += text_of(item.need("content", place), f"{place}.content")
    elif kind == "reasoning":
        thought = text_of(item.content or item.summary or "", place)
        message["reasoning_content"] = message.get("reasoning_content", "") + thought
    else:
        function = {"name": item.need("name", place), "arguments": item.need("arguments", place)}
        call = {"id": item.need("call_id", place), "type": "function", "function": function}
        message.setdefault("tool_calls", []).append(call)


def text_of(content: str | list[Part], param: str) -> str:
    if isinstance(content, str):
        return content
    for i, part in enumerate(content):
        if part.type not in TEXTS or part.text is None:
            message = f"{param}[{i}] is of type {part.type!r:.40}; the models here read text only."
            raise ApiError(400, message, param=f"{param}[{i}]")
    return "".join(part.text or "" for part in content)
