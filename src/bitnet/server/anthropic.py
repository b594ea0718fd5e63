"""What clients of Anthropic's send, read as the other routes read theirs. https://docs.anthropic.com/en/api/messages"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bitnet.engine import SamplingParams
from bitnet.server.conversation import Conversation
from bitnet.server.errors import ApiError
from bitnet.server.grammar import Grammar, of_schema
from bitnet.server.registry import Served
from bitnet.server.schemas import Request, bounded
from bitnet.server.tools import Tool, ToolUse, tool_use

MOST_STOPS = 16
CHOICES = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}


class Block(BaseModel):
    """A part of a message: what it is, and so what it has, is looked at when it is read."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | Annotated[list[Block], Field(fail_fast=True)] | None = None
    is_error: bool | None = None

    def need(self, name: str, param: str) -> Any:
        value = getattr(self, name)
        if value is None:
            raise ApiError(400, f"{param} is of type {self.type} and has no {name}.", param=param)
        return value


Blocks = str | Annotated[list[Block], Field(fail_fast=True)]


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["user", "assistant", "system"]
    content: Blocks


class ToolEntry(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class Choice(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(BaseModel):
    """budget_tokens: ignored; max_tokens bounds the thoughts too."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["enabled", "disabled", "adaptive"]


class Format(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Request):
    format: Format | None = None
    effort: Any = None  # ignored


class CountRequest(Request):
    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    system: Blocks | None = None
    tools: Annotated[list[ToolEntry], Field(fail_fast=True)] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    # Accepted and ignored: they say nothing about the text.
    metadata: Any = None
    service_tier: Any = None
    cache_control: Any = None
    inference_geo: Any = None

    def conversation(self, served: Served, params: SamplingParams) -> Conversation:
        if self.messages[-1].role == "assistant":
            raise ApiError(
                400, "The last message is the assistant's; its answer cannot be begun for it.", param="messages"
            )
        variables = {"enable_thinking": self.thinking.type != "disabled"} if self.thinking else {}
        return Conversation(served, self.read(), params, 1, variables, self.grammar, self.tool_use())

    def read(self) -> list[dict[str, Any]]:
        """The messages as OpenAI has them."""
        system = [] if not self.system else [{"role": "system", "content": text_of(self.system, "system")}]
        return [
            *system,
            *(each for i, m in enumerate(self.messages) for each in read_message(m, f"messages[{i}].content")),
        ]

    def grammar(self) -> Grammar | None:
        wanted = self.output_config.format if self.output_config else None
        return None if wanted is None else of_schema(wanted.schema_, "output_config.format.schema")

    def tool_use(self) -> ToolUse | None:
        tools = [Tool(t.name, t.description, t.input_schema, bool(t.strict)) for t in self.tools or []]
        if self.tool_choice is None:
            return tool_use(tools, "auto")
        choice = self.tool_choice
        return tool_use(tools, CHOICES[choice.type], choice.name, not choice.disable_parallel_tool_use)


class MessagesRequest(CountRequest):
    max_tokens: int = Field(ge=1, description="tokens to generate at most")
    temperature: float | None = bounded("temperature")
    top_p: float | None = bounded("top_p")
    top_k: int | None = Field(None, ge=0, description="keep the k likeliest tokens; 0 keeps all")
    stop_sequences: Annotated[list[str], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    stream: bool | None = None

    def params(self) -> SamplingParams:
        names = ("temperature", "top_p", "top_k")
        given: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        return SamplingParams(max_tokens=self.max_tokens, stop=tuple(self.stop_sequences or ()), **given)


def read_message(message: Message, param: str) -> Iterator[dict[str, Any]]:
    """One message here may be several there: results of tools stand by themselves."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    text, thoughts = "", ""
    calls: list[dict[str, Any]] = []
    for i, block in enumerate(message.content):
        place = f"{param}[{i}]"
        if block.type == "text":
            text += block.need("text", place)
        elif block.type == "thinking":
            thoughts += block.need("thinking", place)
        elif block.type == "tool_use":
            function = {"name": block.need("name", place), "arguments": json.dumps(block.need("input", place))}
            calls.append({"id": block.need("id", place), "type": "function", "function": function})
        elif block.type == "tool_result":
            result = text_of(block.content or "", f"{place}.content")
            result = f"Error: {result}" if block.is_error else result
            yield {"role": "tool", "tool_call_id": block.need("tool_use_id", place), "content": result}
        elif block.type != "redacted_thinking":
            raise unreadable(block, place)
    more: dict[str, Any] = {"tool_calls": calls} if calls else {}
    if thoughts:
        more["reasoning_content"] = thoughts
    if text or more or not any(block.type == "tool_result" for block in message.content):
        yield {"role": message.role, "content": text, **more}


def text_of(content: str | list[Block], param: str) -> str:
    if isinstance(content, str):
        return content
    for i, block in enumerate(content):
        if block.type != "text":
            raise unreadable(block, f"{param}[{i}]")
    return "".join(block.need("text", f"{param}[{i}]") for i, block in enumerate(content))


def unreadable(block: Block, param: str) -> ApiError:
    return ApiError(400, f"{param} is of type {block.type!r:.40}; the models here read text only.", param=param)
