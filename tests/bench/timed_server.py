"""A server that speaks as OpenAI's does, a word a token, with delays that are known."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from bitnet.server.listen import bind, url


class TimedServer:
    """first, gap: seconds before the first token and before each further one. fails: what every third request gets."""

    def __init__(self, first: float = 0.0, gap: float = 0.0, fails: str = "", counts: bool = True) -> None:
        self.first, self.gap, self.fails, self.counts = first, gap, fails, counts
        self.requests: list[dict[str, Any]] = []
        self.arrived: list[float] = []
        self.at_once = self.most_at_once = 0
        self.app = FastAPI()
        self.app.get("/v1/models")(self.models)
        self.app.post("/v1/completions")(self.answer)
        self.app.post("/v1/chat/completions")(self.answer)

    def models(self) -> Any:
        return {"object": "list", "data": [{"id": "words"}, {"id": "others"}]}

    async def answer(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(body)
        self.arrived.append(time.perf_counter())
        failing = len(self.requests) > 2 and len(self.requests) % 3 == 0
        if self.fails == "429" and failing:
            return JSONResponse({"error": {"message": "busy"}}, 429)
        return StreamingResponse(self.stream(body, self.fails == "cut" and failing), media_type="text/event-stream")

    async def stream(self, body: dict[str, Any], cut: bool) -> AsyncIterator[bytes]:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        chat = "messages" in body
        if chat:
            yield event(choices=[{"delta": {"role": "assistant", "content": ""}}])
        await asyncio.sleep(self.first)
        for i in range(body["max_tokens"]):
            if i:
                await asyncio.sleep(self.gap)
            yield event(choices=[{"delta": {"content": "so "}} if chat else {"text": "so "}])
        self.at_once -= 1
        if cut:
            return
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        taken = len(prompt.split()) + (7 if chat else 0)  # what a template adds
        if self.counts:
            yield event(choices=[], usage={"prompt_tokens": taken, "completion_tokens": body["max_tokens"]})
        yield b"data: [DONE]\n\n"

    @contextmanager
    def listening(self) -> Iterator[str]:
        """Its URL."""
        bound = bind("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(self.app, log_level="error"))
        thread = threading.Thread(target=lambda: server.run([bound]))
        thread.start()
        try:
            yield url("127.0.0.1", bound)
        finally:
            server.should_exit = True
            thread.join()


def event(**data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"
