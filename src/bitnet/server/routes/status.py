"""How the server is: /health, /ready, /metrics, /slots and /props."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from bitnet import __version__
from bitnet.engine import SamplingParams
from bitnet.server.context import server_of
from bitnet.server.encoding import JsonResponse
from bitnet.server.registry import Served
from bitnet.server.schemas import ERRORS, ErrorBody

router = APIRouter(tags=["Status"])


class Health(BaseModel):
    status: Literal["ok", "loading", "draining"]


@router.get("/health", response_model=Health, responses=ERRORS)
async def health() -> Response:
    """Whether the process lives."""
    return JsonResponse({"status": "ok"})


@router.get("/ready", response_model=Health, responses={**ERRORS, 503: {"model": Health}})
async def ready(request: Request) -> Response:
    """Whether it takes requests: 503 while the default model loads, and while the server shuts down."""
    status = server_of(request).lifecycle.status
    return JsonResponse({"status": status}, 200 if status == "ok" else 503)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **ERRORS})
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    text = await asyncio.to_thread(server_of(request).metrics.text)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


class Slot(BaseModel):
    id: int
    model: str
    id_task: int
    n_ctx: int
    state: Literal["waiting", "running"]
    is_processing: bool
    n_prompt_tokens: int
    n_prompt_tokens_processed: int
    n_prompt_tokens_cache: int
    cache_miss: str
    n_decoded: int
    speculative: bool


@router.get("/slots", response_model=list[Slot], responses=ERRORS)
async def slots(request: Request) -> Response:
    """The sequences in the engines: how far each has come, not what it says."""
    found: list[dict[str, Any]] = []
    for name, served in server_of(request).registry.loaded.items():
        scheduler = served.model.llm.scheduler
        for sequence in (*list(scheduler.running), *list(scheduler.waiting)):
            found.append(
                {
                    "id": len(found),
                    "model": name,
                    "id_task": sequence.id,
                    "n_ctx": served.model.llm.ctx_size,
                    "state": "running" if sequence.blocks else "waiting",
                    "is_processing": bool(sequence.blocks),
                    "n_prompt_tokens": len(sequence.prompt),
                    "n_prompt_tokens_processed": min(sequence.computed, len(sequence.prompt)),
                    "n_prompt_tokens_cache": sequence.cached,
                    "cache_miss": sequence.miss,
                    "n_decoded": len(sequence.output),
                    "speculative": served.model.llm.speculator is not None,
                }
            )
    return JsonResponse(found)


class Props(BaseModel):
    """As llama.cpp's server has it; no paths."""

    model_alias: str
    model_state: str
    total_slots: int | None
    n_ctx: int | None
    chat_template: str | None
    chat_template_name: str | None
    bos_token: str | None
    eos_token: str | None
    modalities: dict[str, bool]
    default_generation_settings: dict[str, Any]
    build_info: str


@router.get("/props", response_model=Props, responses={**ERRORS, 404: {"model": ErrorBody}})
async def props(request: Request, model: str | None = None) -> Response:
    """What the default model, or another one, is like; nothing is loaded for that."""
    registry = server_of(request).registry
    name = registry.check(model)
    served = registry.loaded.get(name)
    tokens = special_tokens(served) if served else {"bos_token": None, "eos_token": None}
    llm = served.model.llm if served else None
    defaults = SamplingParams()
    return JsonResponse(
        {
            "model_alias": name,
            "model_state": registry.state(name),
            "total_slots": llm.config.max_sequences if llm else None,
            "n_ctx": llm.ctx_size if llm else None,
            "chat_template": served.model.chat_template.source if served else None,
            "chat_template_name": served.model.chat_template.name if served else None,
            **tokens,
            "modalities": {"vision": False, "audio": False},
            "default_generation_settings": {
                "n_ctx": llm.ctx_size if llm else None,
                "params": {field: getattr(defaults, field) for field in ("temperature", "top_k", "top_p", "min_p")},
            },
            "build_info": f"bitnet {__version__}",
        }
    )


def special_tokens(served: Served) -> dict[str, str | None]:
    tokenizer = served.model.tokenizer
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {name: None if i is None else tokenizer.vocabulary.tokens[i] for name, i in ids.items()}
