"""One request to the server, and when each piece of its answer came."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from bitnet.errors import BitNetError, ParameterError

PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}


@dataclass(slots=True)
class Record:
    """Of one request. Times are of time.perf_counter(), in seconds. times: of each piece of text.

    due: when it should have been sent; its latencies count from `started`.
    error: "" where the answer came whole.
    """

    due: float = 0.0
    started: float = 0.0
    sent: float = 0.0
    ended: float = 0.0
    times: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def ttft(self) -> float | None:
        """None where no token of the answer is text."""
        return self.times[0] - self.started if self.times else None

    @property
    def e2el(self) -> float:
        return self.ended - self.started

    @property
    def itls(self) -> list[float]:
        return [after - before for before, after in zip(self.times, self.times[1:])]

    @property
    def tpot(self) -> float | None:
        """Seconds a token after the first."""
        ttft = self.ttft
        return None if ttft is None or self.output_tokens < 2 else (self.e2el - ttft) / (self.output_tokens - 1)


class Target:
    """A model of a server."""

    def __init__(self, http: httpx.AsyncClient, endpoint: str, model: str, options: Mapping[str, Any]) -> None:
        self.http, self.endpoint, self.model, self.options = http, endpoint, model, options

    def body(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"prompt": prompt}
        if self.endpoint == "chat":
            asked = {"messages": [{"role": "user", "content": prompt}]}
        wanted = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": self.model, **asked, "max_tokens": max_tokens, **wanted, **self.options}

    async def ask(self, prompt: str, max_tokens: int, record: Record) -> Record:
        """Fill the record; what fails is said there and not raised."""
        record.sent = time.perf_counter()
        try:
            async with self.http.stream("POST", PATHS[self.endpoint], json=self.body(prompt, max_tokens)) as response:
                if response.status_code != 200:
                    raise ServerError(f"HTTP {response.status_code}: {told(await response.aread())}")
                async for data in events(response):
                    note(record, data)
        except (ServerError, httpx.HTTPError) as error:
            record.error = str(error) or type(error).__name__
        record.ended = time.perf_counter()
        if not record.error and not record.times and not record.output_tokens:
            record.error = "The answer has no tokens."
        record.output_tokens = record.output_tokens or len(record.times)
        return record


class ServerError(Exception):
    """What the server says went wrong."""


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The data of each event up to [DONE]. Raises ServerError where the stream breaks off."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                yield decoded(data)
    raise ServerError("The stream broke off.")


def decoded(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        raise ServerError("The stream holds what is not JSON.") from None
    if not isinstance(found, dict) or "error" in found:
        raise ServerError(f"in the stream: {told(data)}")
    return found


def note(record: Record, data: dict[str, Any]) -> None:
    usage = data.get("usage")
    if usage:
        record.prompt_tokens, record.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    for choice in data.get("choices", ()):
        delta = choice.get("delta", choice)
        if any(delta.get(name) for name in ("text", "content", "reasoning_content", "reasoning", "tool_calls")):
            record.times.append(time.perf_counter())


def told(data: bytes) -> str:
    """The message of an error's body."""
    try:
        error = json.loads(data)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return data[:200].decode("utf-8", "replace") or "nothing more"


async def first_model(http: httpx.AsyncClient) -> str:
    """The model that the server names first. Raises BitNetError where there is no server."""
    try:
        response = await http.get("/v1/models")
        if response.status_code != 200:
            raise BitNetError(f"{http.base_url} answers HTTP {response.status_code}: {told(response.content)}")
        return str(response.json()["data"][0]["id"])
    except httpx.HTTPError as error:
        message = f"{http.base_url} does not answer: {error or type(error).__name__}."
        raise BitNetError(message, "Start one: bitnet serve") from None
    except (ValueError, LookupError, TypeError):
        raise ParameterError(f"{http.base_url} names no models.", "Name one: --served-model NAME") from None
