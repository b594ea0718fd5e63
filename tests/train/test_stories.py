"""The story grammar is deterministic, varied and free of a template's artefacts."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest

from bitnet.train import stories, templates

ARTEFACTS = re.compile(
    r"  |[{}\[\]|]"  # double spaces, slots and choices left over
    r"|\b[Aa] (?!uni)[aeiou]\w+|\b[Aa]n [^aeiouh\W]\w*"  # a apple, an pear
    r"|\b([a-z]+) \1\b"  # the the
    r"|[.!?] [a-z]|^[a-z]|[,.!?] ?[,.]|\.\?|\?\.",  # sentences without a capital, doubled marks
    re.MULTILINE,
)
UNFINISHED = re.compile(r"[^.!?\"]$", re.MULTILINE)


@pytest.fixture(scope="module")
def told() -> list[stories.Story]:
    return list(islice(stories.stories(seed=1), 3000))


def test_the_same_seed_tells_the_same_stories() -> None:
    assert list(islice(stories.stories(5), 20)) == list(islice(stories.stories(5), 20))


def test_another_seed_tells_other_stories() -> None:
    assert list(islice(stories.stories(5), 20)) != list(islice(stories.stories(6), 20))


def test_no_story_is_told_twice(told: list[stories.Story]) -> None:
    assert len({story.text for story in told}) == len(told)


def test_every_plot_is_told(told: list[stories.Story]) -> None:
    assert {story.plot for story in told} == {plot.name for plot in templates.plots()}


def test_no_text_shows_the_template_behind_it(told: list[stories.Story]) -> None:
    texts = [t for s in told for t in (s.text, *(part for question in s.questions for part in question))]
    found = {text[max(0, m.start() - 20) : m.end() + 20] for text in texts for m in ARTEFACTS.finditer(text)}
    assert not found


def test_every_paragraph_ends_as_a_sentence_does(told: list[stories.Story]) -> None:
    assert not [story.text for story in told if UNFINISHED.search(story.text)]


def test_a_topic_continues_a_request(told: list[stories.Story]) -> None:
    topics = {story.topic for story in told}
    assert not [topic for topic in topics if ARTEFACTS.search(f"A story about {topic}.")]


def test_an_answer_names_nothing_that_the_story_does_not(told: list[stories.Story]) -> None:
    names = {word for table in ("girl names", "boy names") for word in templates.words(table)}
    for story in told:
        answered = {word for _, answer in story.questions for word in re.findall(r"[A-Z][a-z]+", answer)} & names
        assert all(name in story.text for name in answered)


def test_there_are_a_hundred_plots_of_different_names() -> None:
    names = [plot.name for plot in templates.plots()]
    assert len(names) == len(set(names)) >= 100


def test_the_things_of_a_story_are_in_it(told: list[stories.Story]) -> None:
    assert all(re.search(rf"\b{thing}\b", story.text) for story in told for thing in story.things)
    assert sum(len(story.things) >= 2 for story in told) > len(told) / 2


def test_sentences_show_nothing_of_their_templates() -> None:
    rng = Random(4)
    for sentence in (stories.sentence(rng) for _ in range(3000)):
        assert not ARTEFACTS.search(sentence) and sentence[-1] in ".?!", sentence


def test_sentences_agree() -> None:
    """Checked by rules of their own, on all nouns and verbs of the tables."""
    rng = Random(5)
    plurals = {row["pl"] for table in ("noun", "being") for row in templates.tables()[table]}
    singulars = {row[""] for table in ("noun", "being") for row in templates.tables()[table]}
    singulars -= plurals | set(templates.words("adj"))  # a light, light
    text = " ".join(stories.sentence(rng) for _ in range(6000))
    pairs = re.findall(r"\b(this|these) (?:\w+ )??(\w+)\b|\bThere (is|are) (?:a|one|many|two|three|four) (\w+)\b", text)
    for determiner, noun, verb, counted in pairs:
        word, many = noun or counted, (determiner or verb) in ("these", "are")
        assert word not in (singulars if many else plurals), (determiner or verb, word)
    for name, himself in re.findall(r"\b([A-Z]\w+) (?:saw|hurt|asked|washed|dressed|taught) (himself|herself)", text):
        assert (himself == "herself") == (name in templates.words("girl names")), name
    assert len(pairs) > 300


@pytest.mark.parametrize("table", ["tv", "iv"])
def test_irregular_verbs_are_not_spelled_as_regular_ones(table: str) -> None:
    verbs = templates.tables()[table]
    assert not [row for row in verbs if row["past"] in ("goed", "seed", "taked", "runned", "eated", "choosed")]
    assert {row["past"] for row in verbs} >= ({"saw", "chose"} if table == "tv" else {"went", "grew"})
    assert all(row["ing"].endswith("ing") and row["s"].endswith("s") for row in verbs)


@pytest.mark.parametrize(("noun", "expected"), [("apple", "an apple"), ("pear", "a pear"), ("uniform", "a uniform")])
def test_the_article_follows_the_sound(noun: str, expected: str) -> None:
    assert stories.article(noun) == expected


@pytest.mark.parametrize("source", ["[a|b", "a]b", "a|b"])
def test_a_template_with_unmatched_brackets_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="template"):
        templates.parse(source)
