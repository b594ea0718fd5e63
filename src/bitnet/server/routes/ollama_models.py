"""The rest of Ollama's dialect: which models there are and what they are like, and embeddings."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field

from bitnet import __version__
from bitnet.server.attend import attended
from bitnet.server.body import JsonRoute
from bitnet.server.context import context_of, server_of
from bitnet.server.encoding import JsonResponse
from bitnet.server.errors import ApiError
from bitnet.server.ollama_input import OLLAMA_ERRORS, name_of
from bitnet.server.reasoning import BEGIN
from bitnet.server.registry import Registry, Served
from bitnet.server.routes.embeddings import EmbeddingRequest, embedded
from bitnet.server.schemas import MOST_PROMPTS, Request

router = APIRouter(route_class=JsonRoute, tags=["Ollama"])


class Listed(BaseModel):
    models: list[dict[str, Any]]


@router.get("/api/tags", response_model=Listed, responses=OLLAMA_ERRORS)
async def tags(request: HttpRequest) -> Response:
    """All models, loaded or not."""
    registry = server_of(request).registry
    return JsonResponse({"models": [described(registry, name) for name in registry.models]})


@router.get("/api/ps", response_model=Listed, responses=OLLAMA_ERRORS)
async def ps(request: HttpRequest) -> Response:
    """The models that are loaded."""
    registry = server_of(request).registry
    return JsonResponse(
        {"models": [{**described(registry, name), **loaded(registry, name)} for name in registry.loaded]}
    )


@router.get("/api/version", responses=OLLAMA_ERRORS)
async def version() -> dict[str, str]:
    return {"version": __version__}


class ShowRequest(Request):
    model: str | None = None
    name: str | None = None  # the older name of model
    verbose: Any = None


@router.post("/api/show", responses=OLLAMA_ERRORS)
async def show(body: ShowRequest, request: HttpRequest) -> Response:
    """What a model is like; it is loaded for that."""
    registry = server_of(request).registry
    name = body.model or body.name
    if name is None:
        raise ApiError(400, "model: Field required", param="model")
    served = await attended(request, registry.get(name_of(registry, name)))
    template, config = served.model.chat_template.source, served.model.llm.model.config
    kind = family(served)
    thinking = ["thinking"] if BEGIN in template or "enable_thinking" in template else []
    info = {
        "general.architecture": kind,
        f"{kind}.context_length": served.model.llm.ctx_size,
        f"{kind}.embedding_length": config.hidden_size,
        f"{kind}.block_count": config.num_hidden_layers,
        f"{kind}.attention.head_count": config.num_attention_heads,
        f"{kind}.attention.head_count_kv": config.num_key_value_heads,
    }
    return JsonResponse(
        {
            "modelfile": "",
            "parameters": "",
            "template": template,
            "details": details(served),
            "model_info": info,
            "capabilities": ["completion", "tools", *thinking],
            "modified_at": moment(registry.created),
        }
    )


class EmbedRequest(Request):
    model: str
    input: str | Annotated[list[str], Field(max_length=MOST_PROMPTS, fail_fast=True)]
    dimensions: int | None = Field(None, ge=1)
    # Accepted and ignored; a text that is too long is an error, whatever truncate says.
    truncate: Any = None
    options: Any = None
    keep_alive: Any = None


@router.post("/api/embed", responses=OLLAMA_ERRORS)
async def embed(body: EmbedRequest, request: HttpRequest) -> Response:
    """Vectors of length 1."""
    began = time.perf_counter_ns()
    registry = server_of(request).registry
    served = await attended(request, registry.get(name_of(registry, body.model)))
    had = time.perf_counter_ns()
    vectors, count = await vectors_of(served, body.input, body.dimensions, request)
    ended = time.perf_counter_ns()
    times = {"total_duration": ended - began, "load_duration": had - began}
    return JsonResponse({"model": served.name, "embeddings": vectors, **times, "prompt_eval_count": count})


class OlderEmbedRequest(Request):
    model: str
    prompt: str
    options: Any = None  # ignored
    keep_alive: Any = None


@router.post("/api/embeddings", responses=OLLAMA_ERRORS)
async def embeddings(body: OlderEmbedRequest, request: HttpRequest) -> Response:
    """The older route: one vector."""
    registry = server_of(request).registry
    served = await attended(request, registry.get(name_of(registry, body.model)))
    vectors, _ = await vectors_of(served, body.prompt, None, request)
    return JsonResponse({"embedding": vectors[0]})


async def vectors_of(
    served: Served, texts: str | list[str], dimensions: int | None, request: HttpRequest
) -> tuple[list[list[float]], int]:
    """One for each text, and the tokens of all."""
    if not texts:
        return ([[]], 0) if isinstance(texts, str) else ([], 0)
    asked = EmbeddingRequest.model_validate({"input": texts, "dimensions": dimensions})
    found = await attended(request, embedded(asked, served, context_of(request)))
    return [entry["embedding"] for entry in found["data"]], found["usage"]["prompt_tokens"]


def described(registry: Registry, name: str) -> dict[str, Any]:
    served = registry.loaded.get(name)
    path = served.model.path if served else None
    return {
        "name": name,
        "model": name,
        "modified_at": moment(registry.created),
        "size": path.stat().st_size if path is not None and path.is_file() else 0,
        "digest": "",
        "details": details(served),
    }


def loaded(registry: Registry, name: str) -> dict[str, Any]:
    """expires_at: when it would be unloaded if nobody asked any more."""
    served, idle = registry.loaded[name], registry.settings.idle_unload
    left = idle - (time.monotonic() - served.last_used) if idle else 100 * 365 * 86400
    expires = moment(int(time.time() + max(0.0, left)))
    return {"expires_at": expires, "size_vram": 0, "context_length": served.model.llm.ctx_size}


def details(served: Served | None) -> dict[str, Any]:
    """What is not known is empty."""
    kind = family(served) if served else ""
    suffix = served.model.path.suffix.removeprefix(".") if served else ""
    empty = {"parent_model": "", "parameter_size": "", "quantization_level": ""}
    return {**empty, "format": suffix, "family": kind, "families": [kind] if kind else []}


def family(served: Served) -> str:
    """The file of bitnet.models that the architecture is in."""
    return type(served.model.llm.model).__module__.rpartition(".")[2]


def moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def refuse(method: str, path: str) -> None:
    @router.api_route(path, methods=[method], include_in_schema=False)
    async def refused() -> Response:
        message = "Models are chosen by whoever runs the server, with --model; requests cannot change them."
        raise ApiError(501, message, code="unsupported")


for method, path in (
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/{digest}"),
):
    refuse(method, path)
