"""A server that speaks as bitnet's does and says what a test wants: the pages' counterpart, for their faults too."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from served_metrics import ServedMetrics

from bitnet.server.routes.page import router


@dataclass
class Answer:
    """pause: seconds between the pieces. breaks: after all pieces, instead of an end: "cut" or an error's message."""

    text: str = "Fine."
    reasoning: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pause: float = 0.0
    breaks: str = ""
    reason: str = "stop"
    timings: dict[str, float] = field(default_factory=dict)


class StandIn:
    """answers: one for each chat request, in order; afterwards the default one. requests: the bodies that came."""

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.requests: list[dict[str, Any]] = []
        self.gone = 0  # streams whose reader left
        self.key = ""
        self.models = [{"id": "tiny", "object": "model", "max_model_len": 4096}, {"id": "large", "object": "model"}]
        self.slots: list[dict[str, Any]] = []
        self.metrics = ServedMetrics()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = self._app()
        self._server: uvicorn.Server | None = None

    def start(self) -> None:
        config = uvicorn.Config(self.app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            self._thread.join(30)
            self._server = None

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(router)

        @app.middleware("http")
        async def guard(request: Request, call: Any) -> Response:
            private = request.url.path.startswith(("/v1", "/metrics", "/slots"))
            if private and self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return JSONResponse({"error": {"message": "There is no API key."}}, 401)
            return await call(request)

        @app.get("/v1/models")
        async def models() -> Any:
            return {"object": "list", "data": self.models}

        @app.get("/metrics")
        async def metrics() -> Response:
            return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

        @app.get("/slots")
        async def slots() -> Any:
            return self.slots

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            self.requests.append(await request.json())
            answer = self.answers.popleft() if self.answers else Answer()
            if answer.status != 200:
                return JSONResponse({"error": {"message": answer.text}}, answer.status, answer.headers)
            return StreamingResponse(self._stream(answer), media_type="text/event-stream")

        return app

    async def _stream(self, answer: Answer) -> AsyncIterator[bytes]:
        def event(choices: list[Any], **more: Any) -> bytes:
            chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "tiny", "choices": choices, **more}
            return f"data: {json.dumps(chunk)}\n\n".encode()

        def delta(**values: str) -> list[dict[str, Any]]:
            return [{"index": 0, "delta": values, "finish_reason": None}]

        try:
            yield event(delta(role="assistant", content=""))
            yield b": ping\n\n"
            count = 0
            for name, text in (("reasoning_content", answer.reasoning), ("content", answer.text)):
                for piece in pieces(text):
                    count += 1
                    data = event(delta(**{name: piece}))
                    yield data[:17]  # however the bytes are cut
                    await asyncio.sleep(answer.pause)
                    yield data[17:]
            if answer.breaks == "cut":
                return
            if answer.breaks:
                yield b'data: {"error": {"message": "%b"}}\n\n' % answer.breaks.encode()
                return
            yield event([{"index": 0, "delta": {}, "finish_reason": answer.reason}])
            usage = {
                "prompt_tokens": 512, "completion_tokens": count, "total_tokens": 512 + count,
                "prompt_tokens_details": {"cached_tokens": 480},
            }  # fmt: skip
            timings = {"prompt_n": 32, "cache_n": 480, "predicted_n": count, "predicted_per_second": 31.25}
            yield event([], usage=usage, timings={**timings, **answer.timings})
            yield b"data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.gone += 1
            raise


def pieces(text: str) -> list[str]:
    """About as long as tokens."""
    return [text[i : i + 4] for i in range(0, len(text), 4)]
