"""What the routes of Responses, Messages and Ollama take, refuse and stream, beside what their own clients show."""

from __future__ import annotations

import json
from typing import Any

import pytest
import serving
import speaker
from out_of_range import SAMPLING

RESPONSES, MESSAGES, COUNT, OLLAMA, GENERATE = (
    "/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/api/chat", "/api/generate",
)  # fmt: skip
USER = [{"role": "user", "content": "the end"}]
BODIES: dict[str, dict[str, Any]] = {
    RESPONSES: {"input": USER},
    MESSAGES: {"model": "tiny", "messages": USER, "max_tokens": 5},
    COUNT: {"model": "tiny", "messages": USER},
    OLLAMA: {"model": "tiny", "messages": USER},
    GENERATE: {"model": "tiny", "prompt": "the end"},
}


def told(path: str, response: Any) -> str:
    """The message of an error, which has the dialect's shape."""
    found = response.json()
    if path.startswith("/api/"):
        assert set(found) == {"error"}
        return str(found["error"])
    if path.startswith(MESSAGES):
        assert found["type"] == "error" and set(found["error"]) == {"type", "message"}
    else:
        assert set(found["error"]) >= {"message", "type", "param", "code"}
    return str(found["error"]["message"])


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("body, status, words", [
    (b"", 400, "empty"), (b"[]", 400, "no object"), (b"{", 400, "not JSON"), (b"[" * 10**5, 400, "levels deep"),
    ({"model": "../../etc/passwd"}, 404, "no model"), ({"temprature": 1}, 400, "no field"),
    ({"stream": "yes"}, 400, "stream"), ({"model": 5}, 400, "model"),
])  # fmt: skip
def test_errors_in_the_shape_of_the_dialect(
    client: serving.Client, path: str, body: Any, status: int, words: str
) -> None:
    if isinstance(body, dict) and "stream" in body and path == COUNT:
        words = "no field"
    data = json.dumps({**BODIES[path], **body}).encode() if isinstance(body, dict) else body
    response = client.post(path, content=data)
    assert response.status_code == status and words in told(path, response), response.text


LONG = [{"role": "user", "content": "a " * 400}]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (RESPONSES, {"input": []}, "input"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "text only"),
    (RESPONSES, {"input": [{"type": "function_call", "name": "a", "arguments": "{}"}]}, "no call_id"),
    (RESPONSES, {"input": LONG}, "context length"),
    (RESPONSES, {"background": True}, "not kept"),
    (RESPONSES, {"conversation": "c"}, "not kept"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "a"}}}, "without a schema"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "schema": {"$ref": "http://x"}}}}, "not fetched"),
    (RESPONSES, {"tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
    (RESPONSES, {"temperature": 101}, "temperature"),
    (RESPONSES, {"max_output_tokens": 0}, "max_output_tokens"),
    (MESSAGES, {"messages": []}, "messages"),
    (MESSAGES, {"max_tokens": None}, "max_tokens"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "text only"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "no tool_use_id"),
    (MESSAGES, {"messages": LONG}, "context length"),
    (MESSAGES, {"stop_sequences": [""]}, "stop"),
    (MESSAGES, {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
    (MESSAGES, {"tool_choice": {"type": "any"}}, "needs tools"),
    (OLLAMA, {"messages": LONG}, "context length"),
    (OLLAMA, {"messages": [{"role": "user", "content": "a", "images": ["eA=="]}]}, "text only"),
    (OLLAMA, {"format": "xml"}, "format"),
    (OLLAMA, {"format": {"type": "wrong"}}, "kept to"),
    (OLLAMA, {"options": {"temperature": -1}}, "temperature"),
    (GENERATE, {"prompt": "a " * 400}, "context length"),
    (GENERATE, {"images": ["eA=="]}, "text only"),
    (GENERATE, {"context": [1, 2]}, "context"),
    (GENERATE, {"template": "{{ .Prompt }}"}, "template"),
]  # fmt: skip


@pytest.mark.parametrize("path, more, words", REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_and_why(
    client: serving.Client, path: str, more: dict[str, Any], words: str, stream: bool
) -> None:
    response = client.post(path, json={**BODIES[path], "stream": stream, **more})
    assert response.status_code == 400 and words in told(path, response), response.text


TAKEN = {
    RESPONSES: {"temperature", "top_p"},
    MESSAGES: {"temperature", "top_p", "top_k"},
    OLLAMA: set(SAMPLING),
    GENERATE: set(SAMPLING),
}


@pytest.mark.parametrize("path", TAKEN)
def test_options_out_of_range_or_of_the_wrong_type(client: serving.Client, path: str) -> None:
    for field in sorted(TAKEN[path]):
        for value in SAMPLING[field]:
            more = {"options": {field: value}} if path in (OLLAMA, GENERATE) else {field: value}
            response = client.post(path, json={**BODIES[path], "stream": False, **more})
            assert response.status_code == 400 and field in told(path, response), (field, value, response.text)


def test_options_of_load_time_change_nothing(client: serving.Client) -> None:
    plain = {**BODIES[OLLAMA], "stream": False, "options": {"seed": 1, "num_predict": 5}}
    more = {"num_ctx": 10**6, "num_gpu": 5, "num_thread": 3, "use_mmap": True, "repeat_last_n": 7, "mirostat": 0}
    answers = [
        client.post(OLLAMA, json={**plain, "options": {**plain["options"], **each}}).json()["message"]
        for each in ({}, more)
    ]
    assert answers[0] == answers[1]


def test_a_negative_number_of_tokens_is_no_limit(client: serving.Client) -> None:
    body = {**BODIES[OLLAMA], "stream": False, "options": {"num_predict": -1, "seed": 1}}
    found = client.post(OLLAMA, json=body).json()
    assert found["eval_count"] > 128 or found["done_reason"] == "stop"


def test_the_same_answer_in_every_dialect(client: serving.Client) -> None:
    text = client.chat(temperature=0).json()["choices"][0]["message"]["content"]
    options = {"temperature": 0, "num_predict": 8}
    assert (
        client.post(OLLAMA, json={**BODIES[OLLAMA], "stream": False, "options": options}).json()["message"]["content"]
        == text
    )
    assert (
        client.post(GENERATE, json={**BODIES[GENERATE], "stream": False, "options": options}).json()["response"] == text
    )
    body = {**BODIES[MESSAGES], "max_tokens": 8, "temperature": 0}
    assert client.post(MESSAGES, json=body).json()["content"] == [{"type": "text", "text": text}]
    body = {"input": "the end", "max_output_tokens": 8, "temperature": 0}
    [item] = client.post(RESPONSES, json=body).json()["output"]
    assert item["content"][0]["text"] == text


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES, OLLAMA])
def test_an_error_in_the_midst_of_a_stream(path: str) -> None:
    body = {**BODIES[path], "stream": True, **({"max_tokens": 50} if path == MESSAGES else {})}
    with speaker.speaking([65, 65, 65, -1]) as client, client.stream("POST", path, json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    last = json.loads(lines[-1].removeprefix("data: "))
    if path == OLLAMA:
        assert "not numbers" in last["error"] and json.loads(lines[0])["done"] is False
    elif path == MESSAGES:
        assert lines[-2] == "event: error" and last["type"] == "error" and "not numbers" in last["error"]["message"]
    else:
        assert lines[-2] == "event: error" and last["type"] == "error" and "not numbers" in last["message"]
        assert last["sequence_number"] == sum(line.startswith("data: ") for line in lines) - 1


def test_pings_are_events_of_anthropics_and_no_lines_of_ollamas() -> None:
    pace = serving.Pace()
    with serving.serving(serving.stand(serving.Paced(steps=pace)), ping_interval=0.05) as client:
        body = {**BODIES[MESSAGES], "stream": True, "max_tokens": 2}
        with client.stream("POST", MESSAGES, json=body) as response:
            lines = response.iter_lines()
            seen = [next(lines) for _ in range(12)]
            pace.end()
            assert seen.count("event: ping") >= 3 and list(lines)[-2] == 'data: {"type":"message_stop"}'
    pace = serving.Pace()
    with serving.serving(serving.stand(serving.Paced(steps=pace)), ping_interval=0.02) as client:
        body = {**BODIES[OLLAMA], "options": {"num_predict": 2}}
        with client.stream("POST", OLLAMA, json=body) as response:
            serving.threading.Event().wait(0.2)
            pace.end()
            lines = [json.loads(line) for line in response.iter_lines()]
        assert [line["done"] for line in lines] == [False, False, True]


def test_an_error_of_a_tool_is_told_to_the_model(client: serving.Client) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "a", "input": {"é": [1]}}
    result = {"type": "tool_result", "tool_use_id": "t1", "is_error": True, "content": "gone"}
    turns = [
        *USER,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result, {"type": "text", "text": "x"}]},
    ]
    less = [*turns[:-1], {"role": "user", "content": [{**result, "is_error": False}, {"type": "text", "text": "x"}]}]
    counts = [client.post(COUNT, json={"messages": messages}).json()["input_tokens"] for messages in (turns, less)]
    assert counts[0] - counts[1] == len("Error: ")


def test_a_call_that_is_cut_short_is_empty_for_clients_that_take_objects() -> None:
    with speaker.speaking('<tool_call>\n{"name": "a", "arguments": {"b": "c') as client:
        tools = [{"type": "function", "function": {"name": "a"}}]
        found = client.post(OLLAMA, json={**BODIES[OLLAMA], "stream": False, "tools": tools}).json()
        assert found["message"]["tool_calls"][0]["function"] == {"index": 0, "name": "a", "arguments": {}}
        body = {**BODIES[MESSAGES], "max_tokens": 500, "tools": [{"name": "a", "input_schema": {}}]}
        assert client.post(MESSAGES, json=body).json()["content"][0]["input"] == {}


def test_requests_do_not_change_models(client: serving.Client) -> None:
    for path in ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/blobs/sha256:1"):
        response = client.post(path, json={"model": "x"})
        assert response.status_code == 501 and "--model" in told(path, response)


def test_a_model_that_is_not_loaded_is_listed_as_far_as_it_is_known(tiny_gguf: Any) -> None:
    models = {"tiny": serving.opener(tiny_gguf, ctx_size=256), "other": serving.opener(tiny_gguf, ctx_size=128)}
    with serving.serving(models, idle_unload=3600) as client:
        names = {model["name"]: model["size"] for model in client.get("/api/tags").json()["models"]}
        assert list(names) == ["tiny", "other"] and names["tiny"] == tiny_gguf.stat().st_size and not names["other"]
        assert [model["name"] for model in client.get("/api/ps").json()["models"]] == ["tiny"]
        assert (
            client.post("/api/show", json={"name": "other:latest"}).json()["model_info"]["bitnet.context_length"] == 128
        )
        assert client.get("/api/version").json()["version"]
