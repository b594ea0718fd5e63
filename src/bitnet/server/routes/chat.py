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
from bitnet.server.conversation import Conversation, converse
from bitnet.server.encoding import JsonResponse
from bitnet.server.errors import ApiError
from bitnet.server.generation import Run, told_reason
from bitnet.server.logprobs import ChatLogprobs
from bitnet.server.registry import Served
from bitnet.server.schemas import Sampling, UsageBody, streamed
from bitnet.server.sse import DONE, EventStream, event

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


class Part(BaseModel):
    """text, or something that this server refuses by name, such as an image."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class Message(BaseModel):
    """Further fields reach the chat template."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None

    def for_template(self) -> dict[str, Any]:
        found = self.model_dump(exclude_none=True)
        found.setdefault("content", None)
        if self.role == "developer":  # OpenAI's newer word, which no template knows
            found["role"] = "system"
        return found


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class ChatRequest(Sampling):
    messages: Messages
    max_completion_tokens: int | None = Field(None, ge=1, description="tokens to generate at most")
    max_tokens: int | None = Field(None, ge=1, description="the older name of max_completion_tokens")
    logprobs: bool | None = Field(None, description="also give the log-probability of every token")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="and as many of the likeliest others")
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="further variables of the chat template")
    modalities: list[Literal["text"]] | None = None
    # Accepted and ignored.
    parallel_tool_calls: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    prediction: Any = None

    @property
    def wanted_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self, served: Served) -> Conversation:
        refuse_what_is_missing(self)
        most = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        params = self.params(served, most, self.wanted_logprobs)
        messages = [message.for_template() for message in self.messages]
        return Conversation(served, messages, params, self.n or 1, self.chat_template_kwargs or {})


def refuse_what_is_missing(body: ChatRequest) -> None:
    """Never ignored: an answer that does not keep to what was asked for would pass for one that does."""
    if body.response_format is not None and body.response_format.get("type") != "text":
        raise ApiError(400, "This response_format is not supported.", param="response_format")
    if body.grammar is not None:
        raise ApiError(400, "Grammars are not supported.", param="grammar")
    if body.tools and body.tool_choice != "none":
        raise ApiError(400, "Tools are not supported.", param="tools")
    if not body.tools and body.tool_choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice needs tools.", param="tool_choice")


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None = None


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
    run = await attended(request, converse(body.conversation(served), context))
    head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
    if body.stream:
        return EventStream(context, request.url.path, chunks(run, head, body), run.close)
    return JsonResponse(await attended(request, completion(run, head)))


async def completion(run: Run, head: dict[str, Any]) -> dict[str, Any]:
    texts, reasons, logprobs = gather(run)
    async for piece in run:
        texts[piece.index].append(piece.text)
        reasons[piece.index] = piece.finish_reason or ""
        logprobs[piece.index][1].extend(logprobs[piece.index][0].push(piece))
    wanted = run.request.params.logprobs is not None
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": "".join(text), "refusal": None},
            "logprobs": {"content": logprobs[i][1], "refusal": None} if wanted else None,
            "finish_reason": told_reason(reasons[i]),
        }
        for i, text in enumerate(texts)
    ]
    return {
        **head,
        "object": "chat.completion",
        "choices": choices,
        "usage": run.usage().openai(),
        "timings": run.timings(),
    }


def gather(run: Run) -> tuple[list[list[str]], list[str], list[tuple[ChatLogprobs, list[dict[str, Any]]]]]:
    """Room for the texts, the reasons and the log-probabilities of every choice."""
    count, tokenizer = len(run.sequences), run.request.served.model.tokenizer
    return [[] for _ in range(count)], [""] * count, [(ChatLogprobs(tokenizer), []) for _ in range(count)]


async def chunks(run: Run, head: dict[str, Any], body: ChatRequest) -> AsyncIterator[bytes]:
    """The role first, then text, then a chunk without any for the reason, and at last the usage where it is wanted."""
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
    async for piece in run:
        if piece.finish_reason is not None:
            unfinished -= 1
            more = {} if unfinished or body.include_usage else {"timings": run.timings()}
            yield chunk(piece.index, {}, told_reason(piece.finish_reason), **more)
            continue
        entries = logprobs[piece.index].push(piece) if logprobs else []
        if piece.text or entries:
            shown = {"content": entries, "refusal": None} if logprobs else None
            yield chunk(piece.index, {"content": piece.text}, logprobs=shown)
    if body.include_usage:
        yield event({**head, "choices": [], "usage": run.usage().openai(), "timings": run.timings()})
    yield DONE
