"""What clients of Ollama's send, read as the other routes read theirs.

https://github.com/ollama/ollama/blob/main/docs/api.md
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bitnet.engine import SamplingParams
from bitnet.server.conversation import Conversation
from bitnet.server.errors import ApiError
from bitnet.server.grammar import ANY_OBJECT, Grammar, of_schema
from bitnet.server.registry import Registry, Served
from bitnet.server.schemas import Request, bounded, errors_of
from bitnet.server.tools import Function, tool_use

MOST_STOPS = 16
NAMES = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty")


class OllamaError(BaseModel):
    error: str


OLLAMA_ERRORS = errors_of(OllamaError)


class Options(Request):
    """num_ctx and the other sizes are the server's to choose: no prompt is cut to fit, whatever they are."""

    temperature: float | None = bounded("temperature")
    top_k: int | None = Field(None, ge=0, description="keep the k likeliest tokens; 0 keeps all")
    top_p: float | None = bounded("top_p")
    min_p: float | None = bounded("min_p")
    presence_penalty: float | None = bounded("presence_penalty")
    frequency_penalty: float | None = bounded("frequency_penalty")
    repeat_penalty: float | None = bounded("repetition_penalty")
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    num_predict: int | None = Field(None, ge=-2, description="tokens to generate at most; below 0: no limit")
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS, fail_fast=True)] | None = None
    # Only where they are off.
    mirostat: Literal[0] | None = None
    tfs_z: float | None = Field(None, ge=1, le=1)
    typical_p: float | None = Field(None, ge=1, le=1)
    # Accepted and ignored.
    mirostat_tau: Any = None
    mirostat_eta: Any = None
    repeat_last_n: Any = None  # penalties look at the whole text
    penalize_newline: Any = None
    numa: Any = None
    num_ctx: Any = None
    num_keep: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    num_thread: Any = None
    main_gpu: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    vocab_only: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    embedding_only: Any = None

    def params(self, logprobs: int | None) -> SamplingParams:
        given: dict[str, Any] = {name: value for name in NAMES if (value := getattr(self, name)) is not None}
        if self.repeat_penalty is not None:
            given["repetition_penalty"] = self.repeat_penalty
        if self.seed is not None:
            given["seed"] = self.seed % 2**64
        most = self.num_predict if self.num_predict is not None and self.num_predict >= 0 else None
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(max_tokens=most, stop=stop, logprobs=logprobs, **given)


class Asking(Request):
    """What chats and single prompts share."""

    model: str
    stream: bool | None = Field(None, description="absent: true")
    format: Literal["", "json"] | dict[str, Any] | None = Field(None, description='"json", or a JSON schema')
    options: Options | None = None
    think: bool | str | None = Field(None, description="whether models that can do both think first")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    keep_alive: Any = None  # accepted and ignored: --idle-unload decides
    truncate: Any = None  # nothing is ever cut off
    shift: Any = None

    def params(self) -> SamplingParams:
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return (self.options or Options.model_validate({})).params(logprobs)

    def grammar(self) -> Grammar | None:
        if not self.format:
            return None
        return of_schema(ANY_OBJECT if isinstance(self.format, str) else self.format, "format")

    @property
    def variables(self) -> dict[str, Any]:
        return {} if self.think is None else {"enable_thinking": self.think is not False}


class CalledFunction(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    arguments: dict[str, Any]


class ToolCall(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    id: str | None = None
    function: CalledFunction

    def for_template(self, number: int) -> dict[str, Any]:
        function = {"name": self.function.name, "arguments": json.dumps(self.function.arguments)}
        return {"id": self.id or f"call_{number}", "type": "function", "function": function}


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None

    def for_template(self, place: str) -> dict[str, Any]:
        if self.images:
            raise no_images(f"{place}.images")
        named = {"name": self.tool_name, "tool_call_id": self.tool_call_id, "reasoning_content": self.thinking}
        found: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        found |= {name: value for name, value in named.items() if value is not None}
        if self.tool_calls:
            found["tool_calls"] = [call.for_template(i) for i, call in enumerate(self.tool_calls)]
        return found


class ToolEntry(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["function"] | None = None
    function: Function


class ChatRequest(Asking):
    messages: Annotated[list[Message], Field(fail_fast=True)] | None = None
    tools: Annotated[list[ToolEntry], Field(fail_fast=True)] | None = None

    def conversation(self, served: Served) -> Conversation:
        messages = [message.for_template(f"messages[{i}]") for i, message in enumerate(self.messages or [])]
        tools = tool_use([entry.function.tool() for entry in self.tools or []], "auto")
        return Conversation(served, messages, self.params(), 1, self.variables, self.grammar, tools)


class GenerateRequest(Asking):
    prompt: str | None = None
    system: str | None = None
    raw: bool | None = Field(None, description="the prompt as it is, without the chat template")
    images: list[str] | None = None
    suffix: Literal[""] | None = Field(None, description="no model here was trained to fill in the middle")
    template: Literal[""] | None = Field(None, description="templates of requests are not supported")
    context: Annotated[list[int], Field(max_length=0)] | None = Field(None, description="not kept; use /api/chat")

    def conversation(self, served: Served) -> Conversation:
        if self.images:
            raise no_images("images")
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, {"role": "user", "content": self.prompt or ""}]
        return Conversation(served, messages, self.params(), 1, self.variables, self.grammar)


def no_images(param: str) -> ApiError:
    return ApiError(400, f"{param}: the models here read text only.", param=param)


def name_of(registry: Registry, model: str) -> str:
    """Ollama's clients add a tag to names without one."""
    plain = model.removesuffix(":latest")
    return model if model in registry.models else plain
