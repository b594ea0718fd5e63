"""langchain-openai, llm, litellm and llama-index: what they hand their users is what the server said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serving

from bitnet import BitNet

Told = Callable[[str, str], Any]


@pytest.fixture
def completion(client: serving.Client) -> str:
    body = {"prompt": "the end", "max_tokens": 8, "temperature": 0}
    return str(client.post("/v1/completions", json=body).json()["choices"][0]["text"])


def vectors(client: serving.Client) -> list[list[float]]:
    found = client.post("/v1/embeddings", json={"input": ["one", "two"]}).json()
    return [each["embedding"] for each in found["data"]]


def test_langchain(told: Told, client: serving.Client, answer: str, completion: str) -> None:
    found = told("openai", "with_langchain.py")
    assert found["text"] == found["streamed"] == answer and found["batch"] == [answer] * 3
    assert found["completion"] == completion and found["reason"] == "length"
    usage = client.chat(temperature=0).json()["usage"]
    assert (found["usage"]["input_tokens"], found["usage"]["output_tokens"]) == (usage["prompt_tokens"], 8)
    assert found["vectors"] == [pytest.approx(each, abs=1e-6) for each in vectors(client)]


def test_litellm(told: Told, client: serving.Client, answer: str, completion: str) -> None:
    found = told("openai2", "with_litellm.py")
    assert found["text"] == found["streamed"] == answer and found["async"] == [answer] * 3
    assert found["completion"] == completion
    assert found["usage"] == client.chat(temperature=0).json()["usage"]["total_tokens"]
    assert found["vectors"] == [pytest.approx(each, abs=1e-6) for each in vectors(client)]
    assert found["no such model"] == "NotFoundError" and found["wrong key"] == "AuthenticationError"
    assert found["too long"] == "ContextWindowExceededError" and found["out of range"] == "BadRequestError"


def test_llama_index(told: Told, answer: str, completion: str) -> None:
    found = told("openai2", "with_llama_index.py")
    assert found["text"] == found["streamed"] == found["async"] == answer and found["completion"] == completion


@pytest.mark.parametrize("streaming", [[], ["--no-stream"]])
def test_llm(
    ran: Callable[..., Any], client: serving.Client, answer: str, tmp_path: Path, streaming: list[str]
) -> None:
    """https://llm.datasette.io/en/stable/other-models.html#openai-compatible-models"""
    model = f"- model_id: ours\n  model_name: tiny\n  api_base: {client.base_url}/v1\n  api_key_name: ours\n"
    (tmp_path / "extra-openai-models.yaml").write_text(model)
    options = ["-o", "temperature", 0, "-o", "max_tokens", 8, *streaming]
    done = ran("openai", "llm", "-m", "ours", "the end", *options, "--key", "sesame", LLM_USER_PATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.removesuffix("\n") == answer


def test_llm_in_its_own_process(ran: Callable[..., Any], installed: str, tmp_path: Path) -> None:
    """By the entry point: no server, and a conversation that goes on."""
    options = ["-o", "temperature", 0, "-o", "max_tokens", 8, "-o", "threads", 1]
    here = {"PYTHONPATH": installed, "LLM_USER_PATH": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    story, more = "Tell me a story about a dog.", "Go on."
    first = ran("openai", "llm", "-m", "bitnet", story, "-s", "Be kind.", *options, "--no-stream", **here)
    assert first.returncode == 0, first.stderr
    then = ran("openai", "llm", "-c", more, *options, "-u", **here)
    assert then.returncode == 0, then.stderr
    with BitNet(threads=1) as model:
        turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": story}]
        answer = model.chat(turns, 8, temperature=0)
        assert first.stdout.removesuffix("\n") == answer
        turns += [{"role": "assistant", "content": answer}, {"role": "user", "content": more}]
        assert then.stdout.removesuffix("\n") == model.chat(turns, 8, temperature=0)
        assert model.stats is not None and f"{model.stats.prompt_tokens} input, 8 output" in then.stderr
    other = ran("openai", "llm", "-m", "bitnet", "Hi", "-o", "path", tmp_path / "none.gguf", **here)
    assert other.returncode == 1 and "none.gguf" in other.stderr and "Traceback" not in other.stderr
    wrong = ran("openai", "llm", "-m", "bitnet", "Hi", "-o", "top_p", 3, **here)
    assert wrong.returncode == 1 and "top_p" in wrong.stderr
