"""POST /v1/completions, OpenAI's older route: texts or token ids in, what follows out, with `echo` and logprobs."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field

from bitnet.server.attend import attended
from bitnet.server.body import JsonRoute
from bitnet.server.context import Context, context_of, server_of
from bitnet.server.encoding import JsonResponse
from bitnet.server.errors import ApiError
from bitnet.server.generation import Generation, Piece, Run, generate, told_reason
from bitnet.server.grammar import compiled
from bitnet.server.logprobs import LegacyLogprobs
from bitnet.server.registry import Served
from bitnet.server.schemas import MOST_PROMPTS, Prompts, UsageBody, streamed
from bitnet.server.sse import DONE, EventStream, event
from bitnet.server.structured import Structured
from bitnet.tokenizer import StreamDecoder

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])
DEFAULT_TOKENS = 16  # as OpenAI has it


class CompletionRequest(Structured):
    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, description="tokens to generate at most; absent: 16")
    logprobs: int | None = Field(None, ge=0, le=20, description="log-probabilities of this many likeliest tokens")
    echo: bool | None = Field(None, description="begin the text with the prompt, and the log-probabilities with its")
    best_of: int | None = Field(None, ge=1, description="only the same as n")
    suffix: Literal[""] | None = None
    add_special_tokens: bool | None = Field(None, description="the begin-of-text token before texts; absent: true")
    parse_special: bool | None = Field(None, description="names of control tokens in texts are those tokens")

    def generation(self, served: Served, prompts: list[list[int]]) -> Generation:
        n = self.n or 1
        if self.best_of not in (None, n):
            raise ApiError(400, "best_of is only supported where it is n.", param="best_of")
        if n * len(prompts) > MOST_PROMPTS:
            raise ApiError(400, f"{len(prompts)} prompts, {n} times, are more than {MOST_PROMPTS}.", param="n")
        params = self.params(served, DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens, self.logprobs)
        score_prompt = bool(self.echo) and self.logprobs is not None
        return Generation(served, prompts, params, n, score_prompt=score_prompt)


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    text: str
    index: int
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageBody
    timings: dict[str, float | str]


@router.post("/v1/completions", responses=streamed(Completion))
async def completions(body: CompletionRequest, request: HttpRequest) -> Response:
    """Write on after each prompt."""
    context = context_of(request)
    served = await attended(request, server_of(request).registry.get(body.model))
    run = await attended(request, start(body, served, context))
    head = {"id": f"cmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
    head["object"] = "text_completion"
    texts = [Text(run, body, index) for index in range(len(run.sequences))]
    if body.stream:
        return EventStream(context, request.url.path, chunks(run, texts, head, body), run.close)
    return JsonResponse(await attended(request, completion(run, texts, head)))


async def start(body: CompletionRequest, served: Served, context: Context) -> Run:
    with served.in_use():
        add, parse = body.add_special_tokens is not False, bool(body.parse_special)
        prompts = await asyncio.to_thread(token_ids, served, body.prompt, add, parse)
        grammar = await asyncio.to_thread(body.wanted_grammar)
        constraint = None if grammar is None else await compiled(grammar, served.model.tokenizer)
    return await generate(replace(body.generation(served, prompts), constraint=constraint), context)


def token_ids(served: Served, prompt: Any, add_special: bool = True, parse_special: bool = False) -> list[list[int]]:
    """Of one text or of several; of one list of ids or of several."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        prompt = [prompt]
    encode = served.model.tokenizer.encode
    return [encode(each, add_special, parse_special) if isinstance(each, str) else list(each) for each in prompt]


class Text:
    """One choice as it grows."""

    def __init__(self, run: Run, body: CompletionRequest, index: int) -> None:
        self.sequence, self.echo = run.sequences[index], bool(body.echo)
        self._tokenizer = run.request.served.model.tokenizer
        given = body.prompt if isinstance(body.prompt, str) else body.prompt[index // run.request.n]
        self._given = given if isinstance(given, str) else None
        decoder = StreamDecoder(self._tokenizer, strip_space=self.echo)
        self._logprobs = LegacyLogprobs(self._tokenizer, decoder) if body.logprobs is not None else None
        self._begun = False

    def push(self, piece: Piece) -> tuple[str, dict[str, list[Any]] | None]:
        """What the piece adds to the text, and to the log-probabilities where they are wanted."""
        text, lists = piece.text, None
        if self._logprobs is not None:
            lists = self._logprobs.lists([] if piece.token is None else [(piece.token, piece.logprob)])
        if self.echo and not self._begun:
            text = self._prompt() + text
        self._begun = True
        return text, lists

    def begin(self) -> dict[str, list[Any]] | None:
        """The log-probabilities of an echoed prompt: known once there is a piece, and wanted before it is pushed."""
        if self._begun or not self.echo or self._logprobs is None:
            return None
        return self._logprobs.prompt(self.sequence.prompt, self.sequence.prompt_logprobs)

    def _prompt(self) -> str:
        return self._given if self._given is not None else self._tokenizer.decode(self.sequence.prompt)


def joined(*parts: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
    given = [part for part in parts if part is not None]
    return {name: [entry for part in given for entry in part[name]] for name in given[0]} if given else None


async def completion(run: Run, texts: list[Text], head: dict[str, Any]) -> dict[str, Any]:
    choices: list[dict[str, Any]] = [{"text": "", "index": i, "logprobs": None} for i in range(len(texts))]
    async for piece in run:
        choice, text = choices[piece.index], texts[piece.index]
        first = text.begin()
        added, lists = text.push(piece)
        choice["text"] += added
        choice["logprobs"] = joined(choice["logprobs"], first, lists)
        choice["finish_reason"] = told_reason(piece.finish_reason)
    return {**head, "choices": choices, "usage": run.usage().openai(), "timings": run.timings()}


async def chunks(run: Run, texts: list[Text], head: dict[str, Any], body: CompletionRequest) -> AsyncIterator[bytes]:
    usage: dict[str, Any] = {"usage": None} if body.include_usage else {}
    unfinished = len(texts)
    async for piece in run:
        first = texts[piece.index].begin()
        text, lists = texts[piece.index].push(piece)
        reason, lists = told_reason(piece.finish_reason), joined(first, lists)
        unfinished -= reason is not None
        if text or reason or (lists and lists["tokens"]):
            choice = {"text": text, "index": piece.index, "logprobs": lists, "finish_reason": reason}
            more = {"timings": run.timings()} if not unfinished and not body.include_usage else {}
            yield event({**head, "choices": [choice], **usage, **more})
    if body.include_usage:
        yield event({**head, "choices": [], "usage": run.usage().openai(), "timings": run.timings()})
    yield DONE
