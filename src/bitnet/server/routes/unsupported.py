"""Routes that clients know and that no model here can serve: 501 with the reason, in place of a bare 404."""

from __future__ import annotations

from fastapi import APIRouter, Response

from bitnet.server.errors import ApiError

router = APIRouter(include_in_schema=False)
REASONS = {
    "/v1/rerank": "The models here write text and embed it; reranking needs a cross-encoder. See /v1/embeddings.",
    "/v1/images/generations": "The models here read and write text only, no images.",
    "/v1/images/edits": "The models here read and write text only, no images.",
    "/v1/audio/speech": "The models here read and write text only, no audio.",
    "/v1/audio/transcriptions": "The models here read and write text only, no audio.",
    "/v1/audio/translations": "The models here read and write text only, no audio.",
    "/v1/moderations": "No model here was trained to moderate.",
    "/infill": "No model here was trained to fill in the middle.",
}
OTHER_NAMES = {"/rerank": "/v1/rerank", "/reranking": "/v1/rerank", "/v1/reranking": "/v1/rerank"}


def refuse(path: str, reason: str) -> None:
    @router.post(path)
    async def refused() -> Response:
        raise ApiError(501, reason, code="unsupported")


for path in (*REASONS, *OTHER_NAMES):
    refuse(path, REASONS[OTHER_NAMES.get(path, path)])
