"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's dialect. https://docs.anthropic.com/en/api/messages"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel

from bitnet.engine import SamplingParams
from bitnet.server.anthropic import CountRequest, MessagesRequest
from bitnet.server.attend import attended
from bitnet.server.body import JsonRoute
from bitnet.server.call_object import as_object
from bitnet.server.context import context_of, server_of
from bitnet.server.conversation import Part, Said, Talk, Thought, converse
from bitnet.server.encoding import JsonResponse
from bitnet.server.generation import Usage
from bitnet.server.schemas import errors_of, streamed
from bitnet.server.sse import EventStream, event
from bitnet.server.tool_calls import Arguments, Call

router = APIRouter(route_class=JsonRoute, tags=["Anthropic"])
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageErrorFields(BaseModel):
    type: str
    message: str


class MessageError(BaseModel):
    type: Literal["error"]
    error: MessageErrorFields


MESSAGE_ERRORS = errors_of(MessageError)


class Counted(BaseModel):
    input_tokens: int


@router.post("/v1/messages/count_tokens", response_model=Counted, responses=MESSAGE_ERRORS)
async def count_tokens(body: CountRequest, request: HttpRequest) -> Response:
    """How many tokens the conversation is to the model, tools included."""
    served = await attended(request, server_of(request).registry.get(body.model))
    with served.in_use():
        ids = await asyncio.to_thread(body.conversation(served, SamplingParams()).prompt)
    return JsonResponse({"input_tokens": len(ids)})


class MessageUsage(BaseModel):
    """input_tokens: those that were computed; the others were in the cache."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int


class MessageBody(BaseModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessageUsage


@router.post("/v1/messages", responses=streamed(MessageBody, MESSAGE_ERRORS))
async def messages(body: MessagesRequest, request: HttpRequest) -> Response:
    """Answer a conversation."""
    context = context_of(request)
    served = await attended(request, server_of(request).registry.get(body.model))
    talk = await attended(request, converse(body.conversation(served, body.params()), context))
    message = Answering(served.name, body.stop_sequences or [], talk)
    if body.stream:
        return MessageStream(context, request.url.path, message.stream(), talk.close)
    return JsonResponse(await attended(request, message.whole()))


class MessageStream(EventStream):
    ping = event({"type": "ping"}, "ping")


class Answering:
    """A message on its way, block by block."""

    def __init__(self, model: str, stops: list[str], talk: Talk) -> None:
        self._talk, self._stops = talk, stops
        self.content: list[dict[str, Any]] = []
        self.body = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self.content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(Usage(talk.run.usage().prompt, 0, 0)),
        }
        self._open = False

    async def whole(self) -> dict[str, Any]:
        async for _ in self.stream():
            pass
        for block in self.content:
            if block["type"] == "tool_use":
                block["input"] = as_object(block["input"])
        return self.body

    async def stream(self) -> AsyncIterator[bytes]:
        yield named("message_start", message={**self.body, "content": []})
        yield MessageStream.ping
        async for said in self._talk:
            for part in said.parts:
                for each in self._add(part):
                    yield each
            if said.reason is not None:
                for each in self._close():
                    yield each
                yield self._end(said)
        yield named("message_stop")

    def _add(self, part: Part) -> Iterator[bytes]:
        """The events for more of the open block, or for a new one."""
        kind, key, text = block_of(part)
        if not self._open or self.content[-1]["type"] != kind or isinstance(part, Call):
            yield from self._close()
            block = {"type": kind, key: "", **({"signature": ""} if kind == "thinking" else {})}
            if isinstance(part, Call):
                block |= {"id": part.id.replace("call_", "toolu_"), "name": part.name}
            self.content.append(block)
            self._open = True
            empty = {**block, "input": {}} if kind == "tool_use" else dict(block)
            yield named("content_block_start", index=len(self.content) - 1, content_block=empty)
        if text:
            self.content[-1][key] += text
            name, field = DELTAS[kind]
            yield named("content_block_delta", index=len(self.content) - 1, delta={"type": name, field: text})

    def _close(self) -> Iterator[bytes]:
        if self._open:
            self._open = False
            yield named("content_block_stop", index=len(self.content) - 1)

    def _end(self, said: Said) -> bytes:
        stop = said.piece.sequence.stopped_by
        matched = stop if stop in self._stops and said.reason == "stop" else None
        ended = {
            "stop_reason": "stop_sequence" if matched else REASONS[said.reason or "stop"],
            "stop_sequence": matched,
        }
        self.body |= {**ended, "usage": usage(self._talk.run.usage())}
        return named("message_delta", delta=ended, usage=self.body["usage"])


DELTAS = {
    "text": ("text_delta", "text"),
    "thinking": ("thinking_delta", "thinking"),
    "tool_use": ("input_json_delta", "partial_json"),
}


def block_of(part: Part) -> tuple[str, str, str]:
    """The type of a part's block, the field that grows, and by what."""
    if isinstance(part, str):
        return "text", "text", part
    if isinstance(part, Thought):
        return "thinking", "thinking", part.text
    return "tool_use", "input", part.text if isinstance(part, Arguments) else ""


def named(name: str, **data: Any) -> bytes:
    return event({"type": name, **data}, name)


def usage(used: Usage) -> dict[str, int]:
    return {
        "input_tokens": used.prompt - used.cached,
        "output_tokens": used.completion,
        "cache_read_input_tokens": used.cached,
        "cache_creation_input_tokens": 0,
    }
