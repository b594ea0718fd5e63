"""Requests name what the answer has; pairs that are held out are never asked for together."""

from __future__ import annotations

import re
from itertools import combinations
from random import Random

import pytest

from bitnet.train import conversations
from bitnet.train.stories import tell
from bitnet.train.templates import tables, words


@pytest.fixture(scope="module")
def talks() -> list[conversations.Turns]:
    rng = Random(3)
    return [conversations.chat(rng) for _ in range(1500)]


def test_conversations_are_deterministic() -> None:
    first, second = ([conversations.chat(rng) for _ in range(200)] for rng in (Random(3), Random(3)))
    assert first == second


def test_they_show_nothing_of_their_templates(talks: list[conversations.Turns]) -> None:
    parts = [part for turns in talks for turn in turns for part in turn]
    assert not [part for part in parts if re.search(r"  |[{}\[\]|]|^\s|\s$", part) or not part]


def test_a_story_has_what_was_asked_for() -> None:
    rng = Random(6)
    things = {word for table in words("things") for word in words(table)}
    for _ in range(500):
        story = tell(rng)
        said, text = conversations.asked_for(story, rng)
        asked = {word for word in things if re.search(rf"\b(?:a|an|words|and|,) {word}\b", said)}
        assert story.topic.lower() in said.lower() or all(word in text for word in asked), (said, text)


def test_held_out_pairs_are_never_asked_for(talks: list[conversations.Turns]) -> None:
    rng = Random(7)
    drawn = [conversations.wanted(tell(rng).things, rng) for _ in range(3000)]
    assert not [pair for things in drawn for pair in combinations(things, 2) if conversations.is_held_out(*pair)]
    animals, objects = words("animal"), words("object")
    held_out = sum(conversations.is_held_out(a, o) for a in animals for o in objects) / len(animals) / len(objects)
    assert 0.03 < held_out < 0.1


def test_whether_a_pair_is_held_out_does_not_depend_on_its_order() -> None:
    assert all(
        conversations.is_held_out(a, b) == conversations.is_held_out(b, a)
        for a, b in combinations((row[""] for row in tables()["animal"]), 2)
    )


def test_a_beginning_and_its_continuation_are_the_whole_text() -> None:
    rng = Random(8)
    text = 'One day, Tom saw a fox. "Hello!" he said. The fox ran away. Tom ran after it. They laughed.'
    for _ in range(20):
        said, rest = conversations.continued(text, rng)
        beginning = text[: -len(rest)].strip()
        assert rest and beginning and beginning in said and f"{beginning} {rest}" == text


@pytest.mark.parametrize(("items", "said"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), ("abc", "a, b and c")])
def test_a_list_is_written_as_one_says_it(items: list[str], said: str) -> None:
    assert conversations.listed(items) == said


def test_a_short_story_is_called_short() -> None:
    rng = Random(9)
    said = {conversations.request("x" * size, rng, topic="a fox") for size in (100, 5000) for _ in range(300)}
    assert any("short story" in text for text in said) and any("long story" in text for text in said)
    assert not [text for text in said if "{" in text]
