"""POST /v1/completions: every form of prompt, `echo` and the older shape of log-probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import serving

from bitnet import BitNet
from bitnet.engine import SamplingParams

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def model(client: serving.Client) -> Any:
    with serving.opener(client.app.state.server.registry.loaded["tiny"].model.path, ctx_size=256)() as opened:
        yield opened


def complete(client: serving.Client, **body: Any) -> Any:
    response = client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def greedy(model: BitNet, ids: list[int], count: int) -> Any:
    sequence = model.llm.add_request(ids, SamplingParams(max_tokens=count, temperature=0, logprobs=2))
    for _ in model.llm.run([sequence]):
        pass
    return sequence


def test_texts_and_ids_one_or_several(client: serving.Client, model: BitNet) -> None:
    texts = ["the end", "in the rain"]
    ids = [model.tokenize(text) for text in texts]
    expected = [model.generate(text, max_tokens=9, temperature=0.0) for text in texts]
    for prompt, wanted in ((texts[0], expected[:1]), (texts, expected), (ids[0], expected[:1]), (ids, expected)):
        found = complete(client, prompt=prompt, max_tokens=9, temperature=0)
        assert [choice["text"] for choice in found["choices"]] == wanted
        assert [choice["index"] for choice in found["choices"]] == list(range(len(wanted)))
    assert found["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_sixteen_tokens_are_the_default(client: serving.Client) -> None:
    assert complete(client, prompt="a", ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_an_echoed_prompt_is_scored_in_the_older_shape(client: serving.Client, model: BitNet) -> None:
    """What lm-eval sends, and what it reads of the answer."""
    ids = model.tokenize("the inner garden")
    found = complete(client, prompt=[ids], max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1)
    logprobs, sequence = found["choices"][0]["logprobs"], greedy(model, ids, 1)
    expected = [None, *(each.logprob for each in model.score("the inner garden")), sequence.logprobs[0].logprob]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx(expected[1:])
    assert len(logprobs["tokens"]) == len(logprobs["top_logprobs"]) == len(logprobs["text_offset"]) == len(ids) + 1
    for value, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert 1 <= len(top) <= 2 and max(top.values()) >= value and value in top.values()
    # The last token was chosen greedily: it is the likeliest.
    assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())


def test_offsets_say_where_in_the_text_each_token_is(client: serving.Client) -> None:
    choice = complete(client, prompt="the inner", max_tokens=3, logprobs=0, echo=True, seed=2)["choices"][0]
    assert choice["text"].startswith("the inner")
    logprobs = choice["logprobs"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith(("<", "bytes:")):
            assert choice["text"][offset : offset + len(token)] == token


def test_a_prompt_can_be_scored_alone(client: serving.Client, model: BitNet) -> None:
    choice = complete(client, prompt="the end", max_tokens=0, logprobs=2, echo=True)["choices"][0]
    assert choice["text"] == "the end" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx([e.logprob for e in model.score("the end")])


def test_echo_without_logprobs_only_repeats_the_prompt(client: serving.Client, model: BitNet) -> None:
    after = complete(client, prompt="the end", max_tokens=4, seed=1)["choices"][0]["text"]
    assert (
        complete(client, prompt="the end", max_tokens=4, seed=1, echo=True)["choices"][0]["text"] == "the end" + after
    )
    ids = model.tokenize("the end")
    assert complete(client, prompt=ids, max_tokens=4, seed=1, echo=True)["choices"][0]["text"] == "the end" + after


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_adds_up_to_the_whole(client: serving.Client, echo: bool) -> None:
    ask = {"prompt": ["the end", "rain"], "max_tokens": 10, "seed": 4, "logprobs": 2, "echo": echo, "n": 2}
    whole = complete(client, **ask)
    *events, done = client.events(PATH, **ask)
    assert done == "[DONE]"
    for choice in whole["choices"]:
        mine = [c for e in events for c in e["choices"] if c["index"] == choice["index"]]
        assert "".join(each["text"] for each in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            assert [x for each in mine if each["logprobs"] for x in each["logprobs"][name]] == choice["logprobs"][name]


def test_control_tokens_in_a_prompt_are_text_unless_it_is_said(client: serving.Client, model: BitNet) -> None:
    name = model.tokenizer.vocabulary.tokens[model.tokenizer.eos_id]
    as_text = complete(client, prompt=f"a{name}", max_tokens=1)["usage"]["prompt_tokens"]
    as_token = complete(client, prompt=f"a{name}", max_tokens=1, parse_special=True)["usage"]["prompt_tokens"]
    assert as_token < as_text


def test_a_bias_forces_or_forbids_a_token(client: serving.Client, model: BitNet) -> None:
    ids = model.tokenize("the end")
    first = greedy(model, ids, 1).output[0]
    forbidden = complete(client, prompt=ids, max_tokens=1, temperature=0, logit_bias={str(first): -100}, logprobs=0)
    assert forbidden["choices"][0]["logprobs"]["tokens"] != [model.tokenizer.token_bytes(first).decode()]
    forced = complete(client, prompt=ids, max_tokens=3, temperature=0, logit_bias={"65": 100})
    assert forced["choices"][0]["text"] == model.detokenize([65, 65, 65])
