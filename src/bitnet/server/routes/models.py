"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from bitnet.server.context import server_of
from bitnet.server.encoding import JsonResponse
from bitnet.server.registry import Registry
from bitnet.server.schemas import ERRORS

router = APIRouter(tags=["OpenAI"])


class ModelBody(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    state: Literal["loaded", "loading", "unloaded"]
    max_model_len: int | None = None  # tokens of context, as vLLM says it; known once the model is loaded


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelBody]


def described(registry: Registry, name: str) -> dict[str, Any]:
    served = registry.loaded.get(name)
    return {
        "id": name,
        "object": "model",
        "created": registry.created,
        "owned_by": "bitnet",
        "state": registry.state(name),
        "max_model_len": served.model.llm.ctx_size if served else None,
    }


@router.get("/v1/models", response_model=ModelList, responses=ERRORS)
async def list_models(request: Request) -> Response:
    """All models, loaded or not; the default one first."""
    registry = server_of(request).registry
    return JsonResponse({"object": "list", "data": [described(registry, name) for name in registry.models]})


@router.get("/v1/models/{name:path}", response_model=ModelBody, responses=ERRORS)
async def get_model(name: str, request: Request) -> Response:
    registry = server_of(request).registry
    registry.check(name)
    return JsonResponse(described(registry, name))
