"""What clients are told when something fails, in the shape that their dialect expects."""

from __future__ import annotations

import math
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bitnet.errors import BitNetError, ContextError, ParameterError, ResourceError
from bitnet.server.encoding import to_json

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    501: "unsupported_error",
    503: "unavailable_error",
}
LONGEST = 500  # characters of a message: it may quote what a client sent


class ApiError(HTTPException):
    """An answer that is an error. `more`: further fields of the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "",
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        **more: Any,
    ) -> None:
        headers = None if retry_after is None else {"Retry-After": str(max(1, math.ceil(retry_after)))}
        super().__init__(status, message, headers)
        self.type = type or TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.message, self.param, self.code, self.more = quoted(message), param, code, more

    def fields(self) -> dict[str, Any]:
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code, **self.more}


def quoted(message: str) -> str:
    """Fit to be logged and shown: one line, no control characters, not endless."""
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def as_api_error(error: BaseException, request_id: str) -> ApiError:
    """What a client is told of any error. Of those that are not its own fault it learns the request's id."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return of_validation(error)
    if isinstance(error, HTTPException):
        told_as = ApiError(error.status_code, str(error.detail))
        told_as.headers = error.headers  # such as Allow
        return told_as
    if isinstance(error, ContextError):
        return ApiError(400, told(error), type="exceed_context_size_error", code="context_length_exceeded")
    if isinstance(error, ParameterError):
        return ApiError(400, told(error))
    if isinstance(error, (ResourceError, MemoryError)):
        message = told(error) if isinstance(error, BitNetError) else "There is not enough memory for this."
        return ApiError(503, message, retry_after=30)
    if isinstance(error, BitNetError):
        return ApiError(500, f"{told(error)} (request {request_id})", code="engine_error")
    return ApiError(500, f"The server failed; its log has more under request {request_id}.", code="internal_error")


def told(error: BitNetError) -> str:
    return f"{error.message} {error.hint}".strip()


def of_validation(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request."""
    found, place = max(((each, path(each, error.body)) for each in error.errors()), key=lambda pair: len(pair[1]))
    param = quoted("".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).removeprefix(".")) or None
    message = str(found["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{param}: {message}" if param else message, param=param)


def path(found: dict[str, Any], body: Any) -> list[str | int]:
    """Where in the body it is, without pydantic's names for the members of a union, which are no part of it."""
    where, *parts = found["loc"]
    if where != "body":
        return list(parts)
    place: list[str | int] = []
    value = body
    for part in parts:
        if isinstance(value, dict) and (part in value or found["type"] == "missing"):
            place.append(part)
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            place.append(part)
            value = value[part]
    return place


def openai(error: ApiError) -> dict[str, Any]:
    return {"error": error.fields()}


def anthropic(error: ApiError) -> dict[str, Any]:
    """https://docs.anthropic.com/en/api/errors"""
    names = {429: "rate_limit_error", 503: "overloaded_error", 413: "request_too_large", 500: "api_error"}
    names |= {400: "invalid_request_error", 501: "invalid_request_error"}
    return {"type": "error", "error": {"type": names.get(error.status_code, error.type), "message": error.message}}


def ollama(error: ApiError) -> dict[str, Any]:
    return {"error": error.message}


SHAPES = (("/v1/messages", anthropic), ("/api/", ollama), ("/", openai))  # by the beginning of the path


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    shape = next((shape for start, shape in SHAPES if path.startswith(start)), openai)
    return shape(error)


def error_response(error: ApiError, path: str) -> Response:
    headers = dict(error.headers or {})
    if error.status_code == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status_code in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not read
    return Response(to_json(error_body(error, path)), error.status_code, headers, "application/json")
