"""Who may come in: known hosts, known origins, and those who have a key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from bitnet.server.errors import ApiError
from bitnet.server.settings import Settings

PROBES = frozenset({"/health", "/ready"})  # open to all, as are the files of the page, which hold no secret
PAGE = re.compile(r"/|/dashboard|/page/[\w.-]+|/favicon\.ico", re.ASCII)


class Access:
    """A middleware in front of every route."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self._keys = [digest(key.encode()) for key in settings.api_key]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        self.check_host(headers.get("host", ""))
        if "origin" in headers:
            self.check_origin(headers["origin"], headers.get("host", ""))
            scope["bitnet.context"].origin = headers["origin"]
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await preflight(headers)(scope, receive, send)
                return
        self.check_key(scope, headers)
        await self.app(scope, receive, send)

    def check_host(self, host: str) -> None:
        """A page of a stranger can make its own name point here (DNS rebinding); it cannot do so with an address.

        It cannot have a key either: where there are keys, any name will do unless some are given.
        """
        allowed = self.settings.allowed_host
        if "*" in allowed or (self.settings.api_key and not allowed):
            return
        name = hostname(host)
        if name not in own_names() and name not in {a.lower() for a in allowed} and not is_address(name):
            raise ApiError(403, "This server is not known by that name; see --allowed-host.", code="host_not_allowed")

    def check_origin(self, origin: str, host: str) -> None:
        """A browser says which site asks: this one, one on this machine, or one that the operator named."""
        site = urlsplit(origin)
        same = site.netloc and site.netloc.lower() == host.lower()
        local = site.scheme in ("http", "https") and hostname(site.netloc) in ("localhost", "127.0.0.1", "::1")
        named = {"*", origin} & set(self.settings.cors_origin)
        if not (same or local or named):
            raise ApiError(403, "Pages of that origin may not call; see --cors-origin.", code="origin_not_allowed")

    def check_key(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        if not self._keys or path in PROBES or (scope["method"] in ("GET", "HEAD") and PAGE.fullmatch(path)):
            return
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not given:
            raise ApiError(401, "There is no API key; send one as `Authorization: Bearer KEY`.", code="missing_api_key")
        found = digest(given.encode("latin-1"))
        # All of them are compared, each in constant time, so that the time says nothing.
        if not sum([hmac.compare_digest(found, key) for key in self._keys]):
            raise ApiError(401, "The API key is wrong.", code="invalid_api_key")


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def hostname(netloc: str) -> str:
    """Without the port; an IPv6 address without its brackets."""
    bracketed = re.fullmatch(r"\[([^]]*)\](?::\d*)?", netloc)
    name = bracketed[1] if bracketed else netloc.partition(":")[0]
    return name.lower().rstrip(".")


def own_names() -> set[str]:
    own = socket.gethostname().lower()
    return {"localhost", own, f"{own}.local"}


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def preflight(headers: Headers) -> Response:
    """https://fetch.spec.whatwg.org/#cors-preflight-fetch"""
    wanted = headers.get("access-control-request-headers", "")
    return Response(
        status_code=204,
        headers={
            "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
            "Access-Control-Allow-Headers": wanted if re.fullmatch(r"[\w\-, ]*", wanted, re.ASCII) else "",
            "Access-Control-Max-Age": "600",
        },
    )
