"""What counts as an answer: tokens, whether or not any of them is text."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from bitnet.bench.serving.client import Record, Target


def ask(*events: dict[str, Any]) -> Record:
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"

    async def asked() -> Record:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, text=body))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
            return await Target(http, "completions", "tiny", {}).ask("a", 4, Record())

    return asyncio.run(asked())


@pytest.mark.parametrize(("tokens", "error"), [(3, ""), (0, "The answer has no tokens.")])
def test_an_answer_without_text(tokens: int, error: str) -> None:
    usage = {"prompt_tokens": 2, "completion_tokens": tokens}
    found = ask({"choices": [{"text": ""}]}, {"choices": [], "usage": usage})
    assert (found.error, found.output_tokens, found.ttft, found.tpot) == (error, tokens, None, None)


def test_tokens_are_those_that_the_server_counts() -> None:
    found = ask({"choices": [{"text": "ab"}]}, {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 5}})
    assert found.error == "" and found.output_tokens == 5 and found.ttft is not None and len(found.times) == 1
