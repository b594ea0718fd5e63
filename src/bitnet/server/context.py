"""What a route finds around it: the server's parts, and what is known of the request."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from starlette.requests import HTTPConnection

if TYPE_CHECKING:
    from bitnet.server.lifecycle import Lifecycle
    from bitnet.server.metrics import Metrics
    from bitnet.server.registry import Registry
    from bitnet.server.settings import Settings


@dataclass(frozen=True, slots=True)
class Server:
    settings: Settings
    registry: Registry
    metrics: Metrics
    lifecycle: Lifecycle


@dataclass(slots=True)
class Context:
    """Of one request. arrived: time.perf_counter(). origin: the site that asks, where it may.

    notes: what the access log says of it beside the usual.
    """

    server: Server
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")
    arrived: float = field(default_factory=time.perf_counter)
    origin: str | None = None
    notes: list[str] = field(default_factory=list)


def server_of(request: HTTPConnection) -> Server:
    return cast("Server", request.app.state.server)


def context_of(request: HTTPConnection) -> Context:
    return cast(Context, request.scope["bitnet.context"])
