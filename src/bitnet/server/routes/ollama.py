"""POST /api/chat and /api/generate: Ollama's dialect, in lines of JSON."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel

from bitnet.server.attend import attended
from bitnet.server.body import JsonRoute
from bitnet.server.call_object import as_object
from bitnet.server.context import Context, context_of, server_of
from bitnet.server.conversation import Reader, Said, Talk, Thought, converse
from bitnet.server.encoding import JsonResponse, to_json
from bitnet.server.errors import ApiError
from bitnet.server.generation import Generation, generate
from bitnet.server.grammar import compiled
from bitnet.server.logprobs import ChatLogprobs
from bitnet.server.ollama_input import OLLAMA_ERRORS, Asking, ChatRequest, GenerateRequest, name_of
from bitnet.server.registry import Served
from bitnet.server.schemas import streamed
from bitnet.server.sse import EventStream
from bitnet.server.tool_calls import Call

router = APIRouter(route_class=JsonRoute, tags=["Ollama"])


class Counts(BaseModel):
    """Durations are in nanoseconds. prompt_eval_count: all tokens of the prompt, those in the cache too."""

    model: str
    created_at: str
    done: Literal[True]
    done_reason: Literal["stop", "length", "load"]
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class Chatted(Counts):
    message: dict[str, Any]


class Generated(Counts):
    response: str
    thinking: str | None = None


NDJSON = "application/x-ndjson"


@router.post("/api/chat", responses=streamed(Chatted, OLLAMA_ERRORS, NDJSON))
async def chat(body: ChatRequest, request: HttpRequest) -> Response:
    """Answer a conversation; without messages, load the model."""
    served, loaded = await load(body, request)
    if not body.messages:
        return JsonResponse({**head(served), "message": {"role": "assistant", "content": ""}, **LOADED})
    talk = await attended(request, converse(body.conversation(served), context_of(request)))
    return await answer(Lines(served, talk, loaded, chatted), body, request)


@router.post("/api/generate", responses=streamed(Generated, OLLAMA_ERRORS, NDJSON))
async def generate_route(body: GenerateRequest, request: HttpRequest) -> Response:
    """Answer one prompt; without one, load the model."""
    served, loaded = await load(body, request)
    if not body.prompt:
        return JsonResponse({**head(served), "response": "", **LOADED})
    conversation = body.conversation(served)
    context = context_of(request)
    work = raw(body, served, context) if body.raw else converse(conversation, context)
    return await answer(Lines(served, await attended(request, work), loaded, generated), body, request)


LOADED = {"done": True, "done_reason": "load"}


async def load(body: Asking, request: HttpRequest) -> tuple[Served, int]:
    """The model, and how long it took to have it, in nanoseconds."""
    registry, began = server_of(request).registry, time.perf_counter_ns()
    served = await attended(request, registry.get(name_of(registry, body.model)))
    return served, time.perf_counter_ns() - began


async def raw(body: GenerateRequest, served: Served, context: Context) -> Talk:
    with served.in_use():
        tokenizer = served.model.tokenizer
        ids = await asyncio.to_thread(tokenizer.encode, body.prompt or "", True, True)
        grammar = await asyncio.to_thread(body.grammar)
        constraint = None if grammar is None else await compiled(grammar, tokenizer)
    run = await generate(Generation(served, [ids], body.params(), constraint=constraint), context)
    return Talk(run, [Reader(False, None)])


async def answer(lines: Lines, body: Asking, request: HttpRequest) -> Response:
    if body.stream is not False:
        return LineStream(context_of(request), request.url.path, lines.stream(), lines.talk.close)
    return JsonResponse(await attended(request, lines.whole()))


class LineStream(EventStream):
    media_type = NDJSON
    ping = None  # there is no line that says nothing

    def failure(self, error: ApiError) -> bytes:
        return to_json({"error": error.message}) + b"\n"


def chatted(text: str, thoughts: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    message |= {"thinking": thoughts} if thoughts else {}
    return {"message": message | ({"tool_calls": calls} if calls else {})}


def generated(text: str, thoughts: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"response": text, **({"thinking": thoughts} if thoughts else {})}


class Lines:
    """An answer line by line. shaped: what a line says besides, of a text, of thoughts and of calls."""

    def __init__(self, served: Served, talk: Talk, loaded: int, shaped: Any) -> None:
        self.talk, self._served, self._loaded, self._shaped = talk, served, loaded, shaped
        self._wanted = talk.run.request.params.logprobs is not None
        self._logprobs = ChatLogprobs(served.model.tokenizer)
        self._entries: list[dict[str, Any]] = []
        self._call: tuple[Call, list[str]] | None = None  # one that is not complete: calls come whole

    async def stream(self) -> AsyncIterator[bytes]:
        async for said in self.talk:
            text, thoughts, calls = self._read(said)
            logprobs = self._read_logprobs(said)
            if text or thoughts or calls or logprobs:
                yield self._line({**self._shaped(text, thoughts, calls), **logprobs, "done": False})
            if said.reason is not None:
                yield self._line({**self._shaped("", "", []), **self._end(said)})

    async def whole(self) -> dict[str, Any]:
        texts, thoughts, calls = [], [], list[dict[str, Any]]()
        end: dict[str, Any] = {}
        logprobs: list[dict[str, Any]] = []
        async for said in self.talk:
            text, thought, called = self._read(said)
            texts.append(text)
            thoughts.append(thought)
            calls += called
            logprobs += self._read_logprobs(said).get("logprobs", [])
            end = self._end(said) if said.reason is not None else end
        shown = {"logprobs": logprobs} if self._wanted else {}
        return {**head(self._served), **self._shaped("".join(texts), "".join(thoughts), calls), **shown, **end}

    def _read(self, said: Said) -> tuple[str, str, list[dict[str, Any]]]:
        text = "".join(part for part in said.parts if isinstance(part, str))
        thoughts = "".join(part.text for part in said.parts if isinstance(part, Thought))
        calls = []
        for part in said.parts:
            if isinstance(part, Call):
                calls += self._complete()
                self._call = part, []
            elif not isinstance(part, (str, Thought)) and self._call is not None:
                self._call[1].append(part.text)
        if said.reason is not None:
            calls += self._complete()
        return text, thoughts, calls

    def _complete(self) -> list[dict[str, Any]]:
        if self._call is None:
            return []
        (call, arguments), self._call = self._call, None
        function = {"index": call.index, "name": call.name, "arguments": as_object("".join(arguments))}
        return [{"id": call.id, "function": function}]

    def _read_logprobs(self, said: Said) -> dict[str, Any]:
        entries = self._logprobs.push(said.piece) if self._wanted else []
        return {"logprobs": entries} if entries else {}

    def _end(self, said: Said) -> dict[str, Any]:
        run = self.talk.run
        timings, usage = run.timings(), run.usage()
        return {
            "done": True,
            "done_reason": "length" if said.reason == "length" else "stop",
            "total_duration": round(1e9 * (time.perf_counter() - run.context.arrived)),
            "load_duration": self._loaded,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": round(1e6 * timings["prompt_ms"]),
            "eval_count": usage.completion,
            "eval_duration": round(1e6 * timings["predicted_ms"]),
        }

    def _line(self, fields: dict[str, Any]) -> bytes:
        return to_json({**head(self._served), **fields}) + b"\n"


def head(served: Served) -> dict[str, Any]:
    return {"model": served.name, "created_at": now()}


def now() -> str:
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")
