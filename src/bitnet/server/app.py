"""The application: its routes, and the layers in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from bitnet import __version__
from bitnet.server.access import Access
from bitnet.server.context import Server, context_of
from bitnet.server.errors import as_api_error, error_response
from bitnet.server.gate import Gate
from bitnet.server.lifecycle import Lifecycle
from bitnet.server.metrics import Metrics
from bitnet.server.registry import Registry
from bitnet.server.routes import ROUTERS
from bitnet.server.settings import Settings


def create_app(registry: Registry, settings: Settings) -> FastAPI:
    """An ASGI application. Its lifespan loads the default model in the background and closes all of them."""
    metrics = Metrics(lambda: registry.loaded, settings.metrics_aliases)
    server = Server(settings, registry, metrics, Lifecycle())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(work) for work in (load_default(server), registry.unload_idle())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await registry.close()

    # The usual pages of FastAPI's documentation load scripts from elsewhere.
    app = FastAPI(title="bitnet", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = server
    app.add_middleware(Access, settings=settings)
    app.add_middleware(Gate, server=server)  # the outermost
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_error)
    for router in ROUTERS:
        app.include_router(router)
    return app


async def answer_error(request: Request, error: Exception) -> Response:
    return error_response(as_api_error(error, context_of(request).id), request.url.path)


async def load_default(server: Server) -> None:
    try:
        await server.registry.get()
        server.lifecycle.loading = False
    except Exception as error:
        server.lifecycle.failure = error
