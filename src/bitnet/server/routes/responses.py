"""POST /v1/responses. https://platform.openai.com/docs/api-reference/responses"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel

from bitnet.server.attend import attended
from bitnet.server.body import JsonRoute
from bitnet.server.context import Context, context_of, server_of
from bitnet.server.conversation import Part, Said, Talk, Thought, converse
from bitnet.server.encoding import JsonResponse
from bitnet.server.errors import ApiError
from bitnet.server.generation import Usage
from bitnet.server.responses_input import ResponsesRequest
from bitnet.server.schemas import streamed
from bitnet.server.sse import EventStream, event
from bitnet.server.tool_calls import Arguments, Call

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])


class CachedInput(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class ReasoningOutput(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: CachedInput
    output_tokens: int
    output_tokens_details: ReasoningOutput
    total_tokens: int


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"]


class ResponseBody(BaseModel):
    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    incomplete_details: IncompleteDetails | None
    usage: ResponseUsage


@router.post("/v1/responses", responses=streamed(ResponseBody))
async def responses(body: ResponsesRequest, request: HttpRequest) -> Response:
    """Answer a conversation. Nothing of it is kept."""
    context = context_of(request)
    served = await attended(request, server_of(request).registry.get(body.model))
    talk = await attended(request, converse(body.conversation_for(served), context))
    responding = Responding(body, served.name, talk)
    if body.stream:
        return ResponseStream(context, request.url.path, responding, talk)
    return JsonResponse(await attended(request, responding.whole()))


class ResponseStream(EventStream):
    """Its errors are events of their own kind."""

    def __init__(self, context: Context, path: str, responding: Responding, talk: Talk) -> None:
        super().__init__(context, path, responding.stream(), talk.close)
        self._responding = responding

    def failure(self, error: ApiError) -> bytes:
        code = error.code or error.type
        return self._responding.named("error", code=code, message=error.message, param=error.param)


class Responding:
    """A response on its way, item by item; every event has the next number."""

    def __init__(self, body: ResponsesRequest, model: str, talk: Talk) -> None:
        self._talk, self._number, self._thought = talk, 0, 0
        self.output: list[dict[str, Any]] = []
        self._open: dict[str, Any] | None = None  # the last of them, where it may grow
        given = body.model_dump(mode="json", by_alias=True)
        params = talk.run.request.params
        self.response: dict[str, Any] = {
            "id": f"resp_{secrets.token_hex(24)}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": params.temperature,
            "text": {"format": no_nulls((given["text"] or {}).get("format") or {"type": "text"})},
            "tool_choice": given["tool_choice"] or "auto",
            "tools": [{"parameters": None, "strict": False, **no_nulls(tool)} for tool in given["tools"] or []],
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None,
        }

    async def whole(self) -> dict[str, Any]:
        async for _ in self.stream():
            pass
        return self.response

    async def stream(self) -> AsyncIterator[bytes]:
        yield self.named("response.created", response=self.response)
        yield self.named("response.in_progress", response=self.response)
        async for said in self._talk:
            self._thought += said.piece.token is not None and any(isinstance(p, Thought) for p in said.parts)
            for part in said.parts:
                for each in self._add(part):
                    yield each
            if said.reason is not None:
                for each in self._close("incomplete" if said.reason == "length" else "completed"):
                    yield each
                yield self._end(said)

    def named(self, kind: str, **data: Any) -> bytes:
        self._number += 1
        return event({"type": kind, "sequence_number": self._number - 1, **data}, kind)

    def _add(self, part: Part) -> Iterator[bytes]:
        """The events for more of the open item, or for a new one."""
        kind = "message" if isinstance(part, str) else "reasoning" if isinstance(part, Thought) else "function_call"
        if self._open is None or self._open["type"] != kind or isinstance(part, Call):
            yield from self._close()
            yield from self._begin(kind, part)
        item = self._open
        assert item is not None
        if isinstance(part, Arguments):
            item["arguments"] += part.text
            yield self.named("response.function_call_arguments.delta", **self._place(item), delta=part.text)
        elif not isinstance(part, Call):
            text = part if isinstance(part, str) else part.text
            item["content"][0]["text"] += text
            more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
            yield self.named(f"response.{TEXT[kind]}.delta", **self._place(item), content_index=0, delta=text, **more)

    def _begin(self, kind: str, part: Part) -> Iterator[bytes]:
        item: dict[str, Any] = {"id": PREFIX[kind] + secrets.token_hex(24), "type": kind, "status": "in_progress"}
        if isinstance(part, Call):
            item |= {"call_id": part.id, "name": part.name, "arguments": ""}
        elif kind == "message":
            item |= {"role": "assistant", "content": []}
        else:
            item |= {"summary": [], "content": []}
        self.output.append(item)
        self._open = item
        yield self.named("response.output_item.added", output_index=len(self.output) - 1, item=item)
        if not isinstance(part, Call):
            empty: dict[str, Any] = {"type": TEXT[kind], "text": ""}
            if kind == "message":
                empty |= {"annotations": [], "logprobs": []}
            item["content"].append(empty)
            yield self.named("response.content_part.added", **self._place(item), content_index=0, part=empty)

    def _close(self, status: str = "completed") -> Iterator[bytes]:
        item, self._open = self._open, None
        if item is None:
            return
        item["status"], place, kind = status, self._place(item), item["type"]
        if kind == "function_call":
            arguments = {"name": item["name"], "arguments": item["arguments"]}
            yield self.named("response.function_call_arguments.done", **place, **arguments)
        else:
            [part] = item["content"]
            more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
            yield self.named(f"response.{TEXT[kind]}.done", **place, content_index=0, text=part["text"], **more)
            yield self.named("response.content_part.done", **place, content_index=0, part=part)
        yield self.named("response.output_item.done", output_index=len(self.output) - 1, item=item)

    def _place(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self.output) - 1}

    def _end(self, said: Said) -> bytes:
        status = "incomplete" if said.reason == "length" else "completed"
        why = {"reason": "max_output_tokens"} if status == "incomplete" else None
        used = usage(self._talk.run.usage(), self._thought)
        self.response |= {"status": status, "output": self.output, "incomplete_details": why, "usage": used}
        return self.named(f"response.{status}", response=self.response)


PREFIX = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}
TEXT = {"message": "output_text", "reasoning": "reasoning_text"}


def no_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def usage(used: Usage, thought: int) -> dict[str, Any]:
    return {
        "input_tokens": used.prompt,
        "input_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": 0},
        "output_tokens": used.completion,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": used.prompt + used.completion,
    }
