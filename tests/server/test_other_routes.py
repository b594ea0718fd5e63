"""Embeddings, tokens, templates, and what is said of the models and the server."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
import serving


@pytest.fixture(scope="module")
def model(client: serving.Client) -> Any:
    with serving.opener(client.app.state.server.registry.loaded["tiny"].model.path, ctx_size=256)() as opened:
        yield opened


def test_embeddings_are_the_vectors_of_the_model(client: serving.Client, model: Any) -> None:
    texts = ["the end", "in the rain", "the end"]
    expected = model.embed(texts)
    found = client.post("/v1/embeddings", json={"input": texts}).json()
    np.testing.assert_array_equal([each["embedding"] for each in found["data"]], expected)
    ids = [model.tokenize(text) for text in texts]
    by_ids = client.post("/v1/embeddings", json={"input": ids, "encoding_format": "base64"}).json()
    for each, vector in zip(by_ids["data"], expected, strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(each["embedding"]), "<f4"), vector)
    assert by_ids["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}
    one = client.post("/v1/embeddings", json={"input": ids[1]}).json()
    np.testing.assert_array_equal(one["data"][0]["embedding"], expected[1])


def test_fewer_dimensions_have_length_one_again(client: serving.Client, model: Any) -> None:
    whole = model.embed("the end")
    found = client.post("/v1/embeddings", json={"input": "the end", "dimensions": 16}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(found, whole[:16] / np.linalg.norm(whole[:16]), rtol=1e-6)
    assert client.post("/v1/embeddings", json={"input": "a", "dimensions": 10**6}).status_code == 400


def test_a_text_longer_than_the_context_is_not_cut(client: serving.Client) -> None:
    error = client.post("/v1/embeddings", json={"input": "a b c d " * 200}).json()["error"]
    assert error["type"] == "exceed_context_size_error" and error["n_ctx"] == 256


def test_tokens_in_both_dialects(client: serving.Client, model: Any) -> None:
    ids = model.tokenize("the end")
    assert client.post("/tokenize", json={"prompt": "the end"}).json()["tokens"] == ids
    bare = client.post("/tokenize", json={"content": "the end"}).json()["tokens"]
    assert [model.tokenizer.bos_id, *bare] == ids
    assert client.post("/tokenize", json={"prompt": "the end", "add_special_tokens": False}).json()["tokens"] == bare
    pieces = client.post("/tokenize", json={"content": "the end", "with_pieces": True}).json()["tokens"]
    assert "".join(each["piece"] for each in pieces) == "the end"
    strings = client.post("/tokenize", json={"prompt": "the end", "return_token_strs": True}).json()
    assert "".join(strings["token_strs"][1:]) == "the end" and strings["count"] == len(ids)
    back = client.post("/detokenize", json={"tokens": bare}).json()
    assert back == {"content": "the end", "prompt": "the end"}


def test_a_piece_that_is_no_text_is_its_bytes(client: serving.Client) -> None:
    pieces = client.post("/tokenize", json={"content": "😀", "with_pieces": True}).json()["tokens"]
    assert b"".join(bytes(each["piece"]) for each in pieces) == "😀".encode()


def test_a_conversation_as_text_and_as_tokens(client: serving.Client, model: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    text = client.post("/apply-template", json={"messages": messages}).json()["prompt"]
    assert text == model.chat_template.render(messages, model.tokenizer)
    ids = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert ids == model.chat_template.apply(messages, model.tokenizer)


def test_what_a_remote_tokenizer_asks(client: serving.Client, model: Any) -> None:
    info = client.get("/tokenizer_info").json()
    for name in ("bos", "eos"):
        tokens = client.post("/tokenize", json={"prompt": info[f"{name}_token"], "add_special_tokens": False}).json()
        assert tokens["tokens"] == [getattr(model.tokenizer, f"{name}_id")]
    assert info["chat_template"] == model.chat_template.source


def test_models_are_listed_and_looked_up(client: serving.Client) -> None:
    (entry,) = client.get("/v1/models").json()["data"]
    assert entry["id"] == "tiny" and entry["state"] == "loaded" and entry["max_model_len"] == 256
    assert client.get("/v1/models/tiny").json() == entry
    assert client.get("/v1/models/org/other").status_code == 404


def test_health_ready_props_and_slots(client: serving.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/ready").json() == {"status": "ok"}
    props = client.get("/props").json()
    assert props["model_alias"] == "tiny" and props["total_slots"] == 8 and props["n_ctx"] == 256
    assert "/" not in props["model_alias"]
    assert client.get("/slots").json() == []


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v1/audio/speech", "/v1/images/generations", "/infill"])
def test_what_no_model_here_can_do_is_refused_with_the_reason(client: serving.Client, path: str) -> None:
    response = client.post(path, json={"query": "a"})
    assert response.status_code == 501 and len(response.json()["error"]["message"]) > 20


def test_metrics_count_what_happened(client: serving.Client) -> None:
    def value(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))

    names = ("bitnet_generation_tokens_total", "bitnet_prompt_tokens_total", "bitnet_requests_total")
    names += tuple(f"bitnet_{each}_seconds_count" for each in ("time_to_first_token", "e2e_request_latency"))
    names += ("bitnet_inter_token_latency_seconds_count", "bitnet_request_queue_time_seconds_count")
    before = {name: value(name) for name in names}
    usage = client.chat(max_tokens=7, ignore_eos=True).json()["usage"]
    after = {name: value(name) - before[name] for name in names}
    assert list(after.values()) == [7, usage["prompt_tokens"], 1, 1, 1, 6, 1]
    assert value("bitnet_requests_running") == 0 and value("bitnet_info") == 1


def test_metrics_under_the_names_of_others(tiny_gguf: Any) -> None:
    with serving.serving(serving.opener(tiny_gguf, ctx_size=64), metrics_aliases=True) as client:
        client.chat(max_tokens=3, ignore_eos=True)
        text = client.get("/metrics").text
        assert 'vllm:generation_tokens_total{model_name="tiny"} 3.0' in text
        assert 'llamacpp:tokens_predicted_total{model_name="tiny"} 3.0' in text
        assert "vllm:time_to_first_token_seconds_bucket{" in text
