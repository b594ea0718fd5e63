"""POST /v1/embeddings."""

from __future__ import annotations

import asyncio
import base64
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Response
from fastapi import Request as HttpRequest
from pydantic import BaseModel, Field

from bitnet.engine.embedder import Vectors
from bitnet.server.attend import attended
from bitnet.server.body import JsonRoute
from bitnet.server.context import Context, context_of, server_of
from bitnet.server.encoding import JsonResponse
from bitnet.server.errors import ApiError
from bitnet.server.generation import check_length
from bitnet.server.registry import Served
from bitnet.server.routes.completions import token_ids
from bitnet.server.schemas import ERRORS, Prompts, Request

router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])
TURN = 512  # tokens that the engine embeds before it goes on with its other work


class EmbeddingRequest(Request):
    input: Prompts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="keep this many numbers of each vector, at length 1 again")
    pooling: Literal["last", "mean", "cls"] | None = Field(None, description="absent: as the model says")
    user: Any = None  # ignored


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


@router.post("/v1/embeddings", response_model=EmbeddingList, responses=ERRORS)
async def embeddings(body: EmbeddingRequest, request: HttpRequest) -> Response:
    """Vectors of length 1, as lists of numbers or as base64 of little-endian float32."""
    served = await attended(request, server_of(request).registry.get(body.model))
    return JsonResponse(await attended(request, embedded(body, served, context_of(request))))


async def embedded(body: EmbeddingRequest, served: Served, context: Context) -> dict[str, Any]:
    with served.in_use():
        prompts = await asyncio.to_thread(token_ids, served, body.input)
        width = served.model.llm.model.config.hidden_size
        if body.dimensions is not None and body.dimensions > width:
            raise ApiError(400, f"dimensions is {body.dimensions}; the model has {width}.", param="dimensions")
        for prompt in prompts:
            check_length(served, prompt, 0)
        place = await served.admission.enter(1)
        try:
            vectors = [vector for turn in turns(prompts) for vector in await embed(served, turn, body.pooling)]
        finally:
            place.finished()
    as_text = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": encoded(shortened(vector, body.dimensions), as_text)}
        for i, vector in enumerate(vectors)
    ]
    count = sum(map(len, prompts))
    return {
        "object": "list",
        "model": served.name,
        "data": data,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


async def embed(served: Served, prompts: list[list[int]], pooling: str | None) -> Vectors:
    """On the engine's thread, between two of its steps."""
    model = served.model
    return await served.service.run_alone(lambda: model.embedder.embed(prompts, pooling or model.pooling))


def turns(prompts: list[list[int]]) -> list[list[list[int]]]:
    """The prompts, in groups that keep the engine busy for a moment only."""
    groups: list[list[list[int]]] = []
    room = 0
    for prompt in prompts:
        if not groups or len(prompt) > room:
            groups.append([])
            room = TURN
        groups[-1].append(prompt)
        room -= len(prompt)
    return groups


def shortened(vector: Vectors, dimensions: int | None) -> Vectors:
    if dimensions is None or dimensions == len(vector):
        return vector
    kept = vector[:dimensions]
    return kept / max(float(np.linalg.norm(kept)), 1e-12)


def encoded(vector: Vectors, as_text: bool) -> list[float] | str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_text else vector.tolist()
