"""The chat page at / and the dashboard at /dashboard: files of this package, and nothing from elsewhere."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, HTTPException, Request, Response

MEDIA = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}

# No script but our files, no markup made of strings, no other host, in no frame.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asks each time, and is told 304
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    gzipped: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, File]:
    """By name, all that there is to be had."""
    found = {}
    for path in files("bitnet.server").joinpath("page").iterdir():
        media_type = MEDIA.get(path.name.rpartition(".")[2])
        if media_type is not None:
            content = path.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            found[path.name] = File(content, gzip.compress(content, mtime=0), media_type, etag)
    return found


@router.api_route("/", methods=["GET", "HEAD"])
def chat(request: Request) -> Response:
    return answer("index.html", request)


@router.api_route("/dashboard", methods=["GET", "HEAD"])
def dashboard(request: Request) -> Response:
    return answer("dashboard.html", request)


@router.api_route("/favicon.ico", methods=["GET", "HEAD"])
def favicon(request: Request) -> Response:
    return answer("icon.svg", request)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def file(name: str, request: Request) -> Response:
    return answer(name, request)


def answer(name: str, request: Request) -> Response:
    file = page_files().get(name)
    if file is None:
        raise HTTPException(404, f"There is no file {name!r} of the page.")
    headers = {**HEADERS, "ETag": file.etag, "Vary": "Accept-Encoding"}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.gzipped, media_type=file.media_type, headers={**headers, "Content-Encoding": "gzip"})
    return Response(file.content, media_type=file.media_type, headers=headers)
