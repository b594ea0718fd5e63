"""What strangers send: an error in OpenAI's shape that names the cause, and a server that goes on."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import httpx
import pytest
import serving
from out_of_range import SAMPLING

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def alive(client: serving.Client) -> Any:
    yield
    assert client.get("/ready").status_code == 200


@pytest.fixture(autouse=True, scope="module")
def unharmed(client: serving.Client) -> Any:
    before = client.chat("hi", seed=1).json()["choices"]
    yield
    assert client.chat("hi", seed=1).json()["choices"] == before
    assert client.app.state.server.registry.loaded["tiny"].admission.active == 0


def check(response: Any, status: int, words: str, param: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert words.lower() in error["message"].lower(), error
    if param is not None:
        assert error["param"] == param, error
    assert response.headers["x-request-id"]
    assert error["message"].isprintable() and len(error["message"]) <= 600


BODIES = {
    "empty": (b"", "empty"),
    "blank": (b"  \n", "empty"),
    "null": (b"null", "no object"),
    "array": (b"[]", "no object"),
    "number": (b"5", "no object"),
    "not JSON": (b"{", "not JSON"),
    "form": (b"a=1&b=2", "not JSON"),
    "trailing": (b"{} {}", "not JSON"),
    "not UTF-8": (b'{"model": "\xff"}', "not JSON"),
    "UTF-16": ('{"messages": []}'.encode("utf-16"), "not JSON"),
    "deep arrays": (b"[" * 100_000, "levels deep"),
    "deep objects": (b'{"a":' * 100_000, "levels deep"),
    "deep and closed": (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "levels deep"),
    "deep after escapes": (b'{"a": "\\"[[", "messages": ' + b"[" * 70 + b"]" * 70 + b"}", "levels deep"),
    "long integer": (b'{"seed": ' + b"9" * 5000 + b"}", "5000 digits"),
    "large float": (b'{"temperature": 1e999}', "too large"),
    "NaN": (b'{"temperature": NaN}', "NaN"),
    "Infinity": (b'{"temperature": -Infinity}', "Infinity"),
    "control character": (b'{"model": "\n"}', "not JSON"),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, EMBEDDINGS, "/tokenize", "/detokenize", "/apply-template"])
def test_bodies_that_are_no_request(client: serving.Client, path: str, name: str) -> None:
    body, words = BODIES[name]
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    check(response, 400, words)


def test_brackets_in_a_text_are_not_depth(client: serving.Client) -> None:
    assert client.chat("[" * 150 + '"{' * 5, max_tokens=1).status_code == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read(client: serving.Client) -> None:
    limit = client.app.state.server.settings.max_body
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {limit + 1}\r\n\r\n"
    with serving.connection(client) as raw:
        raw.sendall(head.encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_body_without_a_length_is_counted(client: serving.Client) -> None:
    limit = client.app.state.server.settings.max_body

    def parts(count: int) -> Any:
        yield b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1'
        for _ in range(count):
            yield b" " * (1 << 16)
        yield b"}"

    assert client.post(CHAT, content=parts(3)).status_code == 200
    with contextlib.suppress(httpx.TransportError):  # the server may have closed before all of it was sent
        check(client.post(CHAT, content=parts(limit // (1 << 16) + 1)), 413, "bytes")


def test_a_body_needs_no_content_type(client: serving.Client) -> None:
    body = json.dumps({"messages": USER, "max_tokens": 1}).encode()
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"):
        assert client.post(CHAT, content=body, headers={"Content-Type": kind}).status_code == 200


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/nothing", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", "/v1/../v1/nothing", 404),
        ("GET", "/%0d%0aevil", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("BREW", "/health", 405),
    ],
)
def test_unknown_routes_and_methods(client: serving.Client, method: str, path: str, status: int) -> None:
    check(client.request(method, path), status, "not")


MESSAGES: list[tuple[Any, str, str]] = [
    (None, "", "messages"),
    ([], "at least 1 item", "messages"),
    ("hi", "list", "messages"),
    ([{}], "required", "messages[0].role"),
    ([None], "", "messages[0]"),
    ([{"role": 123, "content": "a"}], "should be", "messages[0].role"),
    ([{"role": "wizard", "content": "a"}], "should be", "messages[0].role"),
    ([{"role": "user"}], "content", ""),
    ([{"role": "user", "content": 5}], "string", "messages[0].content"),
    ([{"role": "user", "content": [{}]}], "required", "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://localhost:1/x"}}]}], "image", ""),
    ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "audio", ""),
    ([{"role": "user", "content": "half \ud800"}], "", ""),
]


@pytest.mark.parametrize("messages, words, param", MESSAGES)
def test_messages_that_are_none(client: serving.Client, messages: Any, words: str, param: str) -> None:
    body = json.dumps({"messages": messages}).encode()
    check(client.post(CHAT, content=body), 400, words, param or None)


@pytest.mark.parametrize("prompt", [None, [], [[]], [-1], [2**63], [[1], []], [1, "a"], ["a", 1], {}, 5, True, [1.5]])
@pytest.mark.parametrize("path, field", [(COMPLETIONS, "prompt"), (EMBEDDINGS, "input")])
def test_prompts_that_are_none(client: serving.Client, path: str, field: str, prompt: Any) -> None:
    response = client.post(path, json={field: prompt})
    check(response, 400, "")
    assert response.json()["error"]["param"].startswith(field)


def test_token_ids_outside_the_vocabulary(client: serving.Client) -> None:
    check(client.post(COMPLETIONS, json={"prompt": [10**6]}), 400, "token id outside")
    check(client.post(EMBEDDINGS, json={"input": [10**6]}), 400, "token id outside")
    check(client.post("/detokenize", json={"tokens": [10**6]}), 400, "not in the vocabulary")


def test_ten_thousand_bad_entries_give_one_short_error(client: serving.Client) -> None:
    check(client.post(COMPLETIONS, json={"prompt": [[{}]] * 10_000}), 400, "")
    check(client.post(CHAT, json={"messages": [{}] * 10_000}), 400, "")


OUT_OF_RANGE: dict[str, list[Any]] = {
    **SAMPLING,
    "frequency_penalty": [-101, 101, {}],
    "repetition_penalty": [0, 101],
    "stop": [*SAMPLING["stop"], ["a"] * 5, ""],
    "n": [0, 17, "x", 1.5],
    "max_tokens": [-1, "x", 1.5],
    "logit_bias": [{"x": 1}, {"-1": 1}, {"99999999": 1}, {"1": 101}, {"1": "x"}, [], {str(i): 0 for i in range(10**5)}],
    "stream": ["yes", 1],
    "stream_options": [{"include_usage": "x"}, {"other": True}, 5],
    "model": [5, []],
}


@pytest.mark.parametrize("field, value", [(field, value) for field, values in OUT_OF_RANGE.items() for value in values])
@pytest.mark.parametrize("path, base", [(CHAT, {"messages": USER}), (COMPLETIONS, {"prompt": "hi"})])
def test_options_out_of_range_or_of_the_wrong_type(
    client: serving.Client, path: str, base: dict[str, Any], field: str, value: Any
) -> None:
    response = client.post(path, json={**base, field: value})
    check(response, 400, field)


@pytest.mark.parametrize(
    "path, more, words",
    [
        (CHAT, {"messages": USER, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": USER, "logprobs": 5}, "logprobs"),
        (CHAT, {"messages": USER, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"messages": USER, "top_logprobs": 2}, "needs logprobs"),
        (CHAT, {"messages": USER, "modalities": ["audio"]}, "modalities"),
        (CHAT, {"messages": USER, "temprature": 1}, "did you mean 'temperature'"),
        (CHAT, {"messages": USER, "\r\n\x1b[31mevil": 1}, "no field"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "best_of": 3}, "best_of"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "suffix"),
        (COMPLETIONS, {"prompt": ["a"] * 300, "n": 16}, "more than"),
        (EMBEDDINGS, {"input": "a", "encoding_format": "int4"}, "encoding_format"),
        (EMBEDDINGS, {"input": "a", "dimensions": 0}, "dimensions"),
        ("/tokenize", {}, "one of"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "one of"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ],
)
def test_other_mistakes(client: serving.Client, path: str, more: dict[str, Any], words: str) -> None:
    check(client.post(path, json=more), 400, words)


@pytest.mark.parametrize("path, body", [(CHAT, {"messages": [{"role": "user", "content": "a " * 400}]}),
                                        (COMPLETIONS, {"prompt": "a " * 400})])  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context_is_told_both_counts(
    client: serving.Client, path: str, body: dict[str, Any], stream: bool
) -> None:
    response = client.post(path, json={**body, "stream": stream})
    check(response, 400, "context length is 256")
    error = response.json()["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_ctx"] == 256 and str(error["n_prompt_tokens"]) in error["message"]


def test_ignored_fields_are_ignored(client: serving.Client) -> None:
    ignored = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "reasoning_effort": "low"}
    ignored |= {"parallel_tool_calls": False, "safety_identifier": "x", "prompt_cache_key": "y", "verbosity": "low"}
    plain = client.chat(seed=1).json()["choices"]
    assert client.chat(seed=1, **ignored).json()["choices"] == plain


def test_null_is_the_default(client: serving.Client) -> None:
    fields = ("temperature", "top_p", "top_k", "stop", "n", "logit_bias", "seed", "logprobs", "tools", "stream")
    assert client.chat(**dict.fromkeys(fields)).status_code == 200


@pytest.mark.parametrize("field", ["model", "stop", "user"])
def test_odd_text_in_a_field_reaches_neither_log_nor_header(
    client: serving.Client, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    response = client.chat(**{field: "a\r\nX-Evil: 1\x1b[31m"})
    assert response.status_code in (200, 404) and "x-evil" not in response.headers
    client.get("/a%0d%0aevil%1b[31m", headers={"X-Request-Id": "bad id\x1b"})
    assert caplog.messages and all(message.isprintable() for message in caplog.messages)
    assert not any("hi" in message.split() for message in caplog.messages)


def test_the_clients_own_request_id_is_kept(client: serving.Client) -> None:
    assert client.get("/health", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/health", headers={"X-Request-Id": "a b;c"}).headers["x-request-id"].startswith("req-")
