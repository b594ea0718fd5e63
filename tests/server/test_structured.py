"""Answers that are held to a schema, an expression or a grammar, checked by others' validators."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
import serving
import speaker
import tiny

from bitnet.server import grammar
from bitnet.server.errors import ApiError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WORD = {"type": "string", "maxLength": 6}
SCHEMAS: dict[str, Any] = {
    "person": {
        "type": "object",
        "properties": {"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 9}, "ok": {"type": "boolean"}},
        "required": ["name", "age", "ok"],
        "additionalProperties": False,
    },
    "enumeration": {"enum": ["red", "green", 5, None, ["a"]]},
    "constant": {"const": {"a": [1, 2, {"b": None}]}},
    "list": {"type": "array", "items": {"type": "integer", "minimum": -9, "maximum": 9}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [WORD, {"type": "boolean"}], "items": False, "minItems": 2},
    "one or the other": {"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "date": {"type": "string", "format": "date"},
    "nested": {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": {"type": "array", "items": WORD, "maxItems": 2}},
                             "required": ["b"], "additionalProperties": False}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "references": {
        "$defs": {"leaf": {"enum": ["x", "y"]}, "pair": {"type": "array", "items": {"$ref": "#/$defs/leaf"},
                                                         "minItems": 2, "maxItems": 2}},
        "type": "object",
        "properties": {"p": {"$ref": "#/$defs/pair"}, "q": {"$ref": "#/$defs/leaf"}},
        "required": ["p", "q"],
        "additionalProperties": False,
    },
    "number": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "all of": {"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
                         {"properties": {"b": {"type": "null"}}, "required": ["b"]}]},
}  # fmt: skip
REGEXES = [r"[a-c]{3,5}", r"(yes|no)!", r"\d{4}-\d{2}", r"é+x", r"\{\"a\": [0-9]{1,3}\}", r"[^a-z]{2}"]


def ask(client: serving.Client, **more: Any) -> tuple[str, str]:
    """The text of an answer, and the reason for its end."""
    response = client.chat(**{"max_tokens": 120, "temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, **more})
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["message"]["content"], choice["finish_reason"]


def of_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}}


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_a_random_model_says_is_valid_under_the_schema(client: serving.Client, name: str) -> None:
    schema, ended = SCHEMAS[name], 0
    for seed in range(6):
        text, reason = ask(client, seed=seed, **of_schema(schema))
        if reason == "stop":
            jsonschema.validate(json.loads(text), schema)
            ended += 1
        else:
            assert reason == "length"
    assert ended >= 1


def test_any_object(client: serving.Client) -> None:
    texts = [ask(client, seed=seed, response_format={"type": "json_object"}) for seed in range(12)]
    ended = [text for text, reason in texts if reason == "stop"]
    assert ended and all(isinstance(json.loads(text), dict) for text in ended)
    assert all(text.startswith("{") for text, _ in texts)


@pytest.mark.parametrize("expression", REGEXES)
@pytest.mark.parametrize("field", ["regex", "guided_regex", "structured_outputs"])
def test_expressions_match_from_end_to_end(client: serving.Client, expression: str, field: str) -> None:
    for seed in range(3):
        wanted = {"regex": expression} if field == "structured_outputs" else expression
        text, reason = ask(client, seed=seed, **{field: wanted})
        if reason == "stop":
            assert re.fullmatch(expression, text), text
        else:
            assert expression == "é+x" and re.fullmatch("é*�?", text)


def test_choices(client: serving.Client) -> None:
    choices = ['say "a"', "b\nc", "é"]
    found = {ask(client, seed=seed, **{field: wanted})[0] for seed in range(12) for field, wanted in
             (("guided_choice", choices), ("structured_outputs", {"choice": choices}))}  # fmt: skip
    assert found <= set(choices) and len(found) > 1


@pytest.mark.parametrize("source", ['root ::= "<" [a-c]+ ">"', 'start: "<" /[a-c]+/ ">"'])
def test_grammars_of_both_kinds(client: serving.Client, source: str) -> None:
    for seed in range(4):
        text, reason = ask(client, seed=seed, grammar=source)
        assert re.fullmatch("<[a-c]+>", text) if reason == "stop" else re.fullmatch("<[a-c]*", text)


@pytest.mark.parametrize("more", [{"json_schema": SCHEMAS["list"]}, {"guided_json": SCHEMAS["list"]},
                                  {"guided_json": json.dumps(SCHEMAS["list"])},
                                  {"structured_outputs": {"json": SCHEMAS["list"]}},
                                  {"response_format": {"type": "json_object", "schema": SCHEMAS["list"]}}])  # fmt: skip
def test_other_servers_names_of_the_same(client: serving.Client, more: dict[str, Any]) -> None:
    assert ask(client, seed=1, **more) == ask(client, seed=1, **of_schema(SCHEMAS["list"]))


def test_completions_too(client: serving.Client) -> None:
    body = {"prompt": "x", "max_tokens": 90, "seed": 2, **of_schema(SCHEMAS["list"])}
    choice = client.post(COMPLETIONS, json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    jsonschema.validate(json.loads(choice["text"]), SCHEMAS["list"])


def test_an_answer_that_is_cut_short_says_so(client: serving.Client) -> None:
    text, reason = ask(client, max_tokens=3, **of_schema(SCHEMAS["person"]))
    assert reason == "length" and text.startswith("{")


def test_choices_seeds_streams_and_neighbours_change_nothing(client: serving.Client) -> None:
    body = {"seed": 4, "max_tokens": 60, "n": 3, **of_schema(SCHEMAS["person"])}
    whole = [choice["message"]["content"] for choice in client.chat(**body).json()["choices"]]
    assert len(set(whole)) > 1
    with ThreadPoolExecutor(4) as pool:
        again = [pool.submit(client.chat, **body) for _ in range(4)]
        for future in again:
            assert [choice["message"]["content"] for choice in future.result().json()["choices"]] == whole
    messages = [{"role": "user", "content": "the end"}]
    events = client.events(CHAT, messages=messages, **body)
    for index, text in enumerate(whole):
        pieces = [c["delta"].get("content", "") for e in events[:-1] for c in e["choices"] if c["index"] == index]
        assert "".join(pieces) == text


def test_stop_strings_still_stop(client: serving.Client) -> None:
    text, reason = ask(client, regex="abc[xy]def", stop=["d"], seed=1)
    assert re.fullmatch("abc[xy]", text) and reason == "stop"


def test_drafts_change_nothing(tiny_gguf: Any) -> None:
    bodies = [{"seed": seed, "max_tokens": 60, **of_schema(SCHEMAS[name])} for seed, name in enumerate(SCHEMAS)]
    answers = []
    for draft in (None, "lookup"):
        with serving.serving(serving.opener(tiny_gguf, ctx_size=256, draft=draft)) as client:
            answers.append([client.chat(**body).json()["choices"] for body in bodies])
    assert answers[0] == answers[1]


EXPLOSION = "\n".join(["root ::= r0", *(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(2000)), "r2000 ::= r2000"])
NEVER: dict[str, tuple[dict[str, Any], str]] = {
    "reference elsewhere": (of_schema({"$ref": "http://localhost:1/schema.json"}), "not fetched"),
    "reference to a file": (of_schema({"properties": {"a": {"$ref": "file:///etc/passwd"}}}), "not fetched"),
    "reference to nothing": (of_schema({"$ref": "#/$defs/none"}), ""),
    "properties": (of_schema({"properties": {f"p{i}": {} for i in range(257)}}), "257 properties"),
    "size": (of_schema({"enum": ["x" * 70_000]}), "65536 bytes"),
    "depth": (of_schema({"items": {"items": json.loads('{"items":' * 40 + "{}" + "}" * 40)}}), "levels deep"),
    "unknown type": (of_schema({"type": "objet"}), "objet"),
    "not": (of_schema({"not": {"type": "string"}}), "not"),
    "unique": (of_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
    "nothing is valid": (of_schema({"type": "integer", "minimum": 5, "maximum": 1}), ""),
    "no schema": ({"response_format": {"type": "json_schema"}}, "without a schema"),
    "another format": ({"response_format": {"type": "xml"}}, "response_format"),
    "parentheses": ({"regex": "(" * 60_000}, "regex"),
    "look-around": ({"regex": "(?=a)b"}, "look"),
    "back reference": ({"regex": r"(a)\1"}, "backreference"),
    "broken lark": ({"grammar": "start: ("}, "grammar"),
    "nested lark": ({"grammar": "start: " + "(" * 60_000}, "grammar"),
    "nested gbnf": ({"grammar": "root ::= " + "(" * 60_000}, "grammar"),
    "no root": ({"grammar": 'a ::= "b"'}, "grammar"),
    "explosion": ({"grammar": EXPLOSION}, ""),
    "loop": ({"grammar": "root ::= root"}, "cannot be followed"),
    "surrogate": ({"regex": "\ud800"}, "surrogate"),
    "two of them": ({"regex": "a", "guided_choice": ["b"]}, "only one"),
    "no choice": ({"guided_choice": []}, "guided_choice"),
    "not JSON": ({"guided_json": "{"}, "not JSON"),
    "deep JSON": ({"guided_json": '{"a":' * 5000}, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEVER)
def test_what_cannot_be_kept_to_is_refused(client: serving.Client, name: str) -> None:
    more, words = NEVER[name]
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 5, **more}
    response = client.post(CHAT, content=json.dumps(body).encode())
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"], response.text


@pytest.mark.parametrize("regex", ["(a+)+$", "(a|a)*b", "((a{0,99}){0,99}){0,9}", "(.*a){12}"])
def test_expressions_that_explode_elsewhere_do_no_harm(client: serving.Client, regex: str) -> None:
    assert client.chat(regex=regex, max_tokens=20).status_code == 200


def test_many_grammars_wait_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch, client: serving.Client) -> None:
    """While one takes for ever, others in the other place of the pool are served."""
    free, held = threading.Event(), threading.Event()
    original = grammar.matcher_of

    def slow(source: str, tokenizer: Any) -> Any:
        if "slow" in source:
            held.set()
            free.wait(serving.PATIENCE)
        return original(source, tokenizer)

    monkeypatch.setattr(grammar, "matcher_of", slow)
    monkeypatch.setattr(grammar, "MAX_SECONDS", 0.2)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(client.chat, regex="slow")
        assert held.wait(serving.PATIENCE)
        assert ask(client, regex="abc") == ("abc", "stop")
        assert late.result().status_code == 400 and "took more than" in late.result().json()["error"]["message"]
        free.set()
    monkeypatch.setattr(grammar, "MOST_WAITING", 0)
    refused = client.chat(regex="abc")
    assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"


def test_a_grammar_begins_after_the_thoughts_that_the_prompt_has_begun() -> None:
    with speaker.speaking("so, {..}.\n</think>\n\nyes, surely", speaker.THINKER) as client:
        choice = client.chat(temperature=0, max_tokens=60, regex="yes|no").json()["choices"][0]
    assert choice["message"]["reasoning_content"] == "so, {..}."
    assert choice["message"]["content"] == "yes" and choice["finish_reason"] == "stop"


@pytest.mark.parametrize("text", ["a", '{"a": 1}', "é😀", "\n\n x"])
def test_the_end_may_come_where_the_grammar_allows_it_and_only_there(text: str) -> None:
    tokenizer = tiny.tokenizer()
    for wanted, ends in ((re.escape(text), True), (re.escape(text) + "x", False)):
        matcher = grammar.matcher_of(grammar.of_regex(wanted), tokenizer)
        guided = grammar.Guided(matcher)
        for token in tokenizer.encode(text, add_special=False):
            assert guided.mask()[token] and not guided.stopped
            guided.accept(token)
        assert guided.stopped == ends


def test_a_token_that_is_not_allowed_is_an_error() -> None:
    tokenizer = tiny.tokenizer()
    guided = grammar.Guided(grammar.matcher_of(grammar.of_regex("abc"), tokenizer))
    with pytest.raises(Exception, match="cannot be followed"):
        guided.accept(tokenizer.encode("z", add_special=False)[0])


def test_refusals_name_the_field() -> None:
    with pytest.raises(ApiError) as caught:
        grammar.of_schema({"$ref": "http://x"}, "response_format")
    assert caught.value.param == "response_format" and caught.value.code == "invalid_grammar"
