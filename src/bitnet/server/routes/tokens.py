"""Texts to tokens and back: /tokenize and /detokenize as llama.cpp and as vLLM have them, /apply-template."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bitnet.server.attend import attended
from bitnet.server.body import JsonRoute
from bitnet.server.context import server_of
from bitnet.server.conversation import template_ids, template_text
from bitnet.server.encoding import JsonResponse
from bitnet.server.registry import Served
from bitnet.server.routes.chat import Messages
from bitnet.server.schemas import ERRORS, Request, TokenId
from bitnet.tokenizer import Tokenizer

router = APIRouter(route_class=JsonRoute, tags=["Tokens"])


class Templated(Request):
    messages: Messages | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def variables(self) -> dict[str, Any]:
        wanted = self.add_generation_prompt is not False
        return {**(self.chat_template_kwargs or {}), "tools": self.tools, "add_generation_prompt": wanted}


class TokenizeRequest(Templated):
    """`content` is llama.cpp's name, `prompt` vLLM's; each has the other names and defaults of its server."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [name]} for name in ("content", "prompt", "messages")]}
    )

    model: str | None = None
    content: str | None = None
    add_special: bool | None = Field(None, description="with content: add the begin-of-text token; absent: false")
    parse_special: bool | None = Field(None, description="names of control tokens are those tokens; absent: true")
    with_pieces: bool | None = Field(None, description="with content: also the text of each token")
    prompt: str | None = None
    add_special_tokens: bool | None = Field(None, description="with prompt: add the begin-of-text token; absent: true")
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def one_of_them(self) -> TokenizeRequest:
        if sum(each is not None for each in (self.content, self.prompt, self.messages)) != 1:
            raise ValueError("One of content, prompt and messages is needed.")
        return self


class TokenPiece(BaseModel):
    id: int
    piece: str | list[int]


class Tokens(BaseModel):
    tokens: list[int] | list[TokenPiece]
    count: int
    max_model_len: int
    token_strs: list[str] | None


@router.post("/tokenize", response_model=Tokens, responses=ERRORS)
async def tokenize(body: TokenizeRequest, request: HttpRequest) -> Response:
    """Token ids of a text or a conversation."""
    served = await attended(request, server_of(request).registry.get(body.model))
    with served.in_use():
        return JsonResponse(await asyncio.to_thread(tokenized, body, served))


def tokenized(body: TokenizeRequest, served: Served) -> dict[str, Any]:
    tokenizer = served.model.tokenizer
    if body.messages is not None:
        ids = template_ids(served, [message.for_template() for message in body.messages], body.variables)
    elif body.content is not None:
        ids = tokenizer.encode(body.content, bool(body.add_special), body.parse_special is not False)
    else:
        ids = tokenizer.encode(body.prompt or "", body.add_special_tokens is not False, body.parse_special is not False)
    strings = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids] if body.return_token_strs else None
    tokens = [{"id": i, "piece": piece(tokenizer, i)} for i in ids] if body.with_pieces else ids
    return {"tokens": tokens, "count": len(ids), "max_model_len": served.model.llm.ctx_size, "token_strs": strings}


def piece(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """Its text; its bytes where they are not text by themselves."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


class DetokenizeRequest(Request):
    tokens: list[TokenId] = Field(fail_fast=True)
    model: str | None = None


class Detokenized(BaseModel):
    """The same text by llama.cpp's name and by vLLM's."""

    content: str
    prompt: str


@router.post("/detokenize", response_model=Detokenized, responses=ERRORS)
async def detokenize(body: DetokenizeRequest, request: HttpRequest) -> Response:
    """The text of token ids, control tokens by name."""
    served = await attended(request, server_of(request).registry.get(body.model))
    with served.in_use():
        text = await asyncio.to_thread(served.model.tokenizer.decode, body.tokens, False)
    return JsonResponse({"content": text, "prompt": text})


class TemplateRequest(Templated):
    messages: Messages
    model: str | None = None


class TemplateText(BaseModel):
    prompt: str


@router.post("/apply-template", response_model=TemplateText, responses=ERRORS)
async def apply_template(body: TemplateRequest, request: HttpRequest) -> Response:
    """The text that a conversation becomes. Names of control tokens that users wrote look like the template's here."""
    served = await attended(request, server_of(request).registry.get(body.model))
    messages = [message.for_template() for message in body.messages]
    with served.in_use():
        text = await asyncio.to_thread(template_text, served, messages, body.variables)
    return JsonResponse({"prompt": text})


class TokenizerInfo(BaseModel):
    """As in a tokenizer_config.json."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    add_bos_token: bool
    add_eos_token: bool
    chat_template: str


@router.get("/tokenizer_info", response_model=TokenizerInfo, responses=ERRORS)
async def tokenizer_info(request: HttpRequest, model: str | None = None) -> Response:
    """What lm-eval's remote tokenizer asks for."""
    served = await attended(request, server_of(request).registry.get(model))
    tokenizer = served.model.tokenizer
    ids = {name: getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "unk", "pad")}
    return JsonResponse(
        {
            "tokenizer_class": "bitnet",
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": served.model.llm.ctx_size,
            **{f"{name}_token": None if i is None else tokenizer.vocabulary.tokens[i] for name, i in ids.items()},
            "add_bos_token": tokenizer.add_bos,
            "add_eos_token": tokenizer.add_eos,
            "chat_template": served.model.chat_template.source,
        }
    )
