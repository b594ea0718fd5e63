"""POST /v1/chat/completions. https://platform.openai.com/docs/api-reference/chat"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field

from bitnet.server.attend import attended
from bitnet.server.body import JsonRoute
from bitnet.server.context import context_of, server_of
from bitnet.server.conversation import Answer, Conversation, Talk, Thought, converse
from bitnet.server.conversation import Part as AnswerPart
from bitnet.server.encoding import JsonResponse
from bitnet.server.errors import ApiError
from bitnet.server.logprobs import ChatLogprobs
from bitnet.server.registry import Served
from bitnet.server.schemas import UsageBody, streamed
from bitnet.server.sse import DONE, EventStream, event
from bitnet.server.structured import Structured
from bitnet.server.tool_calls import Call
from bitnet.server.tools import ToolChoice, Tools, openai_tools

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


class Part(BaseModel):
    """text, or something that this server refuses by name, such as an image."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class CalledFunction(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    arguments: str


class ToolCall(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(BaseModel):
    """Further fields reach the chat template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = Field(None, description="what the assistant thought, for templates that show it")
    reasoning: str | None = None  # another name of the same

    def for_template(self) -> dict[str, Any]:
        found = self.model_dump(exclude_none=True)
        found.setdefault("content", None)
        if self.reasoning is not None:
            found.setdefault("reasoning_content", found.pop("reasoning"))
        if self.role == "developer":  # OpenAI's newer word, which no template knows
            found["role"] = "system"
        return found


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class ChatRequest(Structured):
    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, description="tokens to generate at most")
    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens")
    logprobs: bool | None = Field(None, description="also give the log-probability of every token")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and as many of the likeliest others")
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="further variables of the chat template")
    modalities: list[Literal["text"]] | None = None
    # Accepted and ignored.
    reasoning_effort: Any = None
    verbosity: Any = None
    prediction: Any = None

    @property
    def wanted_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self, served: Served) -> Conversation:
        most = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        params = self.params(served, most, self.wanted_logprobs)
        messages = [message.for_template() for message in self.messages]
        tools = openai_tools(self.tools or [], self.tool_choice, self.parallel_tool_calls)
        variables = self.chat_template_kwargs or {}
        return Conversation(served, messages, params, self.n or 1, variables, self.wanted_grammar, tools)


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: UsageBody
    timings: dict[str, float | str]


@router.post("/v1/chat/completions", responses=streamed(ChatCompletion))
async def chat_completions(body: ChatRequest, request: HttpRequest) -> Response:
    """Answer a conversation."""
    context = context_of(request)
    served = await attended(request, server_of(request).registry.get(body.model))
    talk = await attended(request, converse(body.conversation(served), context))
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
    if body.stream:
        return EventStream(context, request.url.path, chunks(talk, head, body), talk.close)
    return JsonResponse(await attended(request, completion(talk, head)))


async def completion(talk: Talk, head: dict[str, Any]) -> dict[str, Any]:
    run = talk.run
    count, tokenizer = len(run.sequences), run.request.served.model.tokenizer
    answers, logprobs = [Answer() for _ in range(count)], [ChatLogprobs(tokenizer) for _ in range(count)]
    entries: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    async for said in talk:
        answers[said.index].add(said)
        entries[said.index] += logprobs[said.index].push(said.piece)
    wanted = run.request.params.logprobs is not None
    choices = [
        {
            "index": i,
            "message": message(answer),
            "logprobs": {"content": entries[i], "refusal": None} if wanted else None,
            "finish_reason": answer.reason,
        }
        for i, answer in enumerate(answers)
    ]
    return {
        **head,
        "object": "chat.completion",
        "choices": choices,
        "usage": run.usage().openai(),
        "timings": run.timings(),
    }


def message(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.thoughts:
        found["reasoning_content"] = answer.thoughts
    if answer.calls:
        found["content"] = answer.text or None
        found["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(arguments)}}
            for call, arguments in answer.calls
        ]
    return found


def delta(part: AnswerPart) -> dict[str, Any]:
    if isinstance(part, str):
        return {"content": part}
    if isinstance(part, Thought):
        return {"reasoning_content": part.text}
    if isinstance(part, Call):
        function = {"name": part.name, "arguments": ""}
        return {"tool_calls": [{"index": part.index, "id": part.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}


async def chunks(talk: Talk, head: dict[str, Any], body: ChatRequest) -> AsyncIterator[bytes]:
    """The role first, then text, then a chunk without any for the reason, and at last the usage where it is wanted."""
    run = talk.run
    head = {**head, "object": "chat.completion.chunk"}
    usage: dict[str, Any] = {"usage": None} if body.include_usage else {}
    tokenizer = run.request.served.model.tokenizer
    logprobs = [ChatLogprobs(tokenizer) for _ in run.sequences] if body.logprobs else None

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": more.pop("logprobs", None), "finish_reason": reason}
        return event({**head, "choices": [choice], **usage, **more})

    for index in range(len(run.sequences)):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    unfinished = len(run.sequences)
    async for said in talk:
        entries = logprobs[said.index].push(said.piece) if logprobs else []
        for part in said.parts or [""] * bool(entries):
            shown = {"content": entries, "refusal": None} if logprobs else None
            yield chunk(said.index, delta(part), logprobs=shown)
            entries = []
        if said.reason is not None:
            unfinished -= 1
            more = {} if unfinished or body.include_usage else {"timings": run.timings()}
            yield chunk(said.index, {}, said.reason, **more)
    if body.include_usage:
        yield event({**head, "choices": [], "usage": run.usage().openai(), "timings": run.timings()})
    yield DONE
