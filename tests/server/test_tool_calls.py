"""Thoughts and calls of tools in a text that comes in pieces, cut in every way."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.server.reasoning import Thoughts
from bitnet.server.tool_calls import Arguments, Call, CallParser

NAMES = ("weather", "add")
WEATHER = '{"name": "weather", "arguments": {"city": "Os\\"lo}", "days": [1, {"a": 2}]}}'
ADD = '{"name": "add", "arguments": {}}'
ASKED = ("weather", '{"city": "Os\\"lo}", "days": [1, {"a": 2}]}')


def cuts(text: str) -> Iterator[list[str]]:
    """Whole, at every character, at each place once, and at random."""
    yield [text]
    yield list(text)
    for i in range(1, len(text)):
        yield [text[:i], text[i:]]
    dice = random.Random(text)
    for _ in range(20):
        places = sorted(dice.sample(range(len(text) + 1), min(len(text), dice.randint(2, 6))))
        yield [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]


def parsed(pieces: list[str], syntax: Any, parallel: bool = True) -> tuple[str, list[tuple[str, str]]]:
    """The text, and the calls as names with arguments."""
    parser = CallParser(syntax, NAMES, parallel)
    text, calls, ids = "", [], set()
    for found in [*itertools.chain.from_iterable(map(parser.push, pieces)), *parser.flush()]:
        assert found != "" and not (isinstance(found, Arguments) and not found.text)
        if isinstance(found, Call):
            assert found.index == len(calls) and found.id not in ids
            ids.add(found.id)
            calls.append((found.name, ""))
        elif isinstance(found, Arguments):
            assert found.index == len(calls) - 1
            calls[-1] = (calls[-1][0], calls[-1][1] + found.text)
        else:
            text += found
    return text, calls


TAGGED = {
    "text": ("Hello <tool> world ", "Hello <tool> world ", []),
    "blank": (" \n ", " \n ", []),
    "nothing": ("", "", []),
    "one": (f"<tool_call>\n{WEATHER}\n</tool_call>", "", [ASKED]),
    "tight": (f"<tool_call>{WEATHER}</tool_call>", "", [ASKED]),
    "unclosed": (f"<tool_call>\n{WEATHER}", "", [ASKED]),
    "half closed": (f"<tool_call>\n{WEATHER}\n</tool", "", [ASKED]),
    "two": (f"<tool_call>\n{WEATHER}\n</tool_call>\n<tool_call>\n{ADD}\n</tool_call>\n", "", [ASKED, ("add", "{}")]),
    "text before": (f"Let me see.\n\n<tool_call>\n{ADD}\n</tool_call>", "Let me see.", [("add", "{}")]),
    "text after": (f"<tool_call>\n{ADD}\n</tool_call>\n\nDone. ", "Done.", [("add", "{}")]),
    "arguments first": ('<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', "", [("add", '{"a": 1}')]),
    "further members": ('<tool_call>{"id": 5, "name": "add", "arguments": {}, "x": [{}]}', "", [("add", "{}")]),
    "no arguments": ('<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    "null arguments": ('<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [("add", "{}")]),
    "text as arguments": ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}', "", [("add", '{"a": 1}')]),
    "escaped name": ('<tool_call>{"name": "\\u0061dd", "arguments": {}}</tool_call>', "", [("add", "{}")]),
    "cut short": ('<tool_call>{"name": "add", "arguments": {"a": "b', "", [("add", '{"a": "b')]),
    "wrong later": ('<tool_call>{"name": "add", "arguments": {"a": 1}, 5}', "5}", [("add", '{"a": 1}')]),
    "no close": (f"<tool_call>{ADD} and on", "and on", [("add", "{}")]),
}  # fmt: skip
NO_CALLS = [
    "<tool_call>", "a <tool_cal", "<tool_call>\n", "<tool_call> five </tool_call>", "<tool_call>[1]</tool_call>",
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', '<tool_call>{"name": "ad',
    "<tool_call>{}</tool_call>",
    '<tool_call>{"name": 5, "arguments": {}}</tool_call>', '<tool_call>{"arguments": {"a": 1}}</tool_call>',
    '<tool_call>{"name": "add", "arguments": [1]}</tool_call>', '<tool_call>{"name": "add", "arguments": "no"}',
    '<tool_call>{"name": "add", "x": tru}</tool_call>', '<tool_call>{name: "add"}</tool_call>', '<tool_call>{"a" "b"}',
    '<tool_call>{"x": <tool_call>{"y"', '  {"name": "add", "arguments": {}}',
]  # fmt: skip


@pytest.mark.parametrize("name", TAGGED)
def test_calls_between_tags(name: str) -> None:
    text, shown, calls = TAGGED[name]
    for pieces in cuts(text):
        assert parsed(pieces, "tags") == (shown, calls), pieces


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_stays_text(text: str) -> None:
    for pieces in cuts(text):
        assert parsed(pieces, "tags") == (text, []), pieces


def test_a_call_after_one_that_is_none() -> None:
    for pieces in cuts(f'<tool_call>{{"x": <tool_call>{ADD}</tool_call>'):
        assert parsed(pieces, "tags") == ('<tool_call>{"x": ', [("add", "{}")]), pieces


LLAMA = ADD.replace("arguments", "parameters")
BARE = {
    "one": (WEATHER, "", [ASKED]),
    "parameters": (LLAMA, "", [("add", "{}")]),
    "python tag": (f"<|python_tag|>{LLAMA}", "", [("add", "{}")]),
    "spaces": (f"\n {LLAMA} \n", "", [("add", "{}")]),
    "two": (f"{WEATHER}; {LLAMA}", "", [ASKED, ("add", "{}")]),
    "list": (f"[{WEATHER}, {ADD}]\n", "", [ASKED, ("add", "{}")]),
    "text after": (f"{ADD}\nDone.", "Done.", [("add", "{}")]),
    "cut short": ('{"name": "add", "parameters": {"a', "", [("add", '{"a')]),
    "typed": ('{"type": "function", "name": "add", "parameters": {}}', "", [("add", "{}")]),
    "not at the beginning": (f"Call {ADD}", f"Call {ADD}", []),
    "another object": ('{"a": {"name": "add", "arguments": {}}} ', '{"a": {"name": "add", "arguments": {}}} ', []),
    "unknown": ('[{"name": "x", "arguments": {}}]', '[{"name": "x", "arguments": {}}]', []),
    "list of numbers": ("[1, 2]", "[1, 2]", []),
    "half a tag": ("<|python", "<|python", []),
    "tag and code": ("<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    "blank": (" \n", " \n", []),
    "then another object": (f'{ADD}; {{"b": 1}}', '{"b": 1}', [("add", "{}")]),
}


@pytest.mark.parametrize("name", BARE)
def test_bare_calls(name: str) -> None:
    text, shown, calls = BARE[name]
    for pieces in cuts(text):
        assert parsed(pieces, "bare") == (shown, calls), pieces


@pytest.mark.parametrize("syntax", ["tags", "bare"])
def test_one_call_only_where_no_more_is_wanted(syntax: str) -> None:
    text = f"{WEATHER};{ADD}" if syntax == "bare" else f"<tool_call>{WEATHER}</tool_call><tool_call>{ADD}</tool_call>"
    for pieces in cuts(text):
        assert parsed(pieces, syntax, parallel=False) == ("", [ASKED])


def test_arguments_come_as_they_are_written() -> None:
    parser = CallParser("tags", NAMES)
    found = [each for char in f"<tool_call>{WEATHER}" for each in parser.push(char)]
    assert isinstance(found[0], Call)
    assert [each.text for each in found[1:] if isinstance(each, Arguments)] == list(ASKED[1])


@given(st.text(), st.dictionaries(st.text(), st.none() | st.text() | st.lists(st.integers())), st.integers())
def test_any_arguments_come_through(text: str, arguments: dict[str, Any], seed: int) -> None:
    dice = random.Random(seed)
    said = json.dumps({"x": text, "name": "add", "y": [text], "arguments": arguments}, ensure_ascii=dice.random() < 0.5)
    pieces = [f"<tool_call>{said}</tool_call>"]
    for _ in range(dice.randint(0, 6)):
        pieces = [part for piece in pieces for part in split(piece, dice.randint(0, len(piece)))]
    shown, [(name, found)] = parsed(pieces, "tags")
    assert not shown and name == "add" and json.loads(found) == arguments


def split(text: str, at: int) -> tuple[str, str]:
    return text[:at], text[at:]


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", ADD, '{"', "a", "\n", '":', "[", "]", "}", "<", ";"])))
def test_no_text_is_lost_and_the_cut_makes_no_difference(parts: list[str]) -> None:
    for syntax in ("tags", "bare"):
        whole = parsed(["".join(parts)], syntax)
        assert parsed(list("".join(parts)), syntax) == whole == parsed(parts, syntax)
        if not whole[1]:
            assert whole[0] == "".join(parts)


THOUGHTS = {
    "none": ("Hi there", "", "Hi there"),
    "some": ("<think>\nhm, <b> hm\n</think>\n\nHi ", "hm, <b> hm", "Hi "),
    "spaces before": ("\n <think>a b</think>c", "a b", "c"),
    "empty": ("<think>\n\n</think>\n\nHi", "", "Hi"),
    "unfinished": ("<think>\nhm </thi", "hm </thi", ""),
    "only thoughts": ("<think>hm</think>\n", "hm", ""),
    "later": ("a <think>b</think>", "", "a <think>b</think>"),
    "twice": ("<think>a</think><think>b</think>", "a", "<think>b</think>"),
    "almost": ("<thin>k", "", "<thin>k"),
    "half": (" <thi", "", " <thi"),
    "blank": ("\n", "", "\n"),
    "inner space": ("<think>a\n\n b </think>c", "a\n\n b", "c"),
}


def thought(pieces: list[str], open: bool) -> tuple[str, str]:
    splitter = Thoughts(open)
    pairs = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(a for a, _ in pairs), "".join(b for _, b in pairs)


@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts(name: str) -> None:
    text, thoughts, shown = THOUGHTS[name]
    for pieces in cuts(text):
        assert thought(pieces, False) == (thoughts, shown), pieces


def test_thoughts_that_the_prompt_has_begun() -> None:
    for pieces in cuts("\nhm\n</think>\n\nHi"):
        assert thought(pieces, True) == ("hm", "Hi"), pieces
