"""The same request gets the same answer over HTTP, whoever else asks at the same time."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import serving

TEXT = "It was a dark and stormy night; the rain fell in torrents, except at occasional intervals."
PROMPTS = [TEXT, TEXT[:40], TEXT[20:], "the the the the the the the the the the the"]
END = {"max_tokens": 20, "ignore_eos": True}
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.2, "seed": 7},
    {"temperature": 1.0, "seed": 8, "logprobs": 2, "top_p": 0.9},
    {"temperature": 0.7, "seed": 9, "n": 2, "frequency_penalty": 0.5},
]
TARGETS = [{"prompt": prompt, **END, **params} for prompt in PROMPTS for params in PARAMS]
SERVERS: dict[str, dict[str, Any]] = {
    "f16": {"kv": "f16", "max_sequences": 8},
    "int8-drafts": {"kv": "int8", "max_sequences": 4, "draft": "lookup", "kv_blocks": 30, "threads": 2},
    "f32-uncached": {"kv": "f32", "max_sequences": 2, "chunk": 9, "prefix_cache": False},
}


def choices(client: serving.Client, body: dict[str, Any]) -> Any:
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def streamed_texts(client: serving.Client, body: dict[str, Any]) -> list[str]:
    texts = [""] * body.get("n", 1)
    for event in client.events("/v1/completions", **body):
        for choice in event["choices"] if event != "[DONE]" else ():
            texts[choice["index"]] += choice["text"]
    return texts


def disturb(client: serving.Client, seed: int) -> None:
    """A request like the others at its beginning, that may be left in its middle."""
    choose = random.Random(seed)
    prompt = choose.choice(PROMPTS)[: choose.randint(1, 90)] + str(seed) * choose.randint(0, 10)
    body = {"prompt": prompt, "max_tokens": choose.randint(1, 60), "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        for count, _ in enumerate(response.iter_lines()):
            if count == choose.choice([1, 6, 1000]):
                break


@pytest.mark.parametrize("name", SERVERS)
def test_neighbours_change_no_answer(tiny_gguf: Path, name: str) -> None:
    options = {"ctx_size": 200, **SERVERS[name]}
    quiet = {**options, "max_sequences": 1, "threads": 1, "draft": None, "prefix_cache": False, "kv_blocks": 0}
    with serving.serving(serving.opener(tiny_gguf, **quiet)) as client:
        expected = [choices(client, body) for body in TARGETS]
    with serving.serving(serving.opener(tiny_gguf, **options)) as client, ThreadPoolExecutor(12) as pool:
        jobs: list[tuple[Any, ...]] = [(disturb, client, seed) for seed in range(30)]
        jobs += [(choices, client, body) for body in TARGETS] + [(streamed_texts, client, body) for body in TARGETS]
        order = random.Random(0).sample(range(len(jobs)), len(jobs))
        running = {i: pool.submit(*jobs[i]) for i in order}
        found = [running[i].result(serving.PATIENCE) for i in range(len(jobs))][30:]
    assert found[: len(TARGETS)] == expected
    assert found[len(TARGETS) :] == [[choice["text"] for choice in answer] for answer in expected]
