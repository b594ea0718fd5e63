"""The model that ships with the package."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from bitnet import BitNet
from bitnet.api import builtin_model

# Written for this test, so that no training text holds it.
STORY = (
    "Once upon a time, there was a little girl named Anna. Anna had a small red boat. One day, she took her boat to "
    "the pond in the park. The wind blew and the boat went far away. Anna was sad. "
    'She said, "Oh no! My boat is gone!" Then a big dog came and jumped into the water. The dog swam to the boat and '
    'brought it back. Anna was very happy. She hugged the dog and said, "Thank you!" '
    "From that day on, Anna and the dog were good friends."
)


@pytest.fixture(scope="module")
def model() -> Iterator[BitNet]:
    with BitNet(threads=1) as opened:
        yield opened


def bits_per_character(model: BitNet, text: str) -> float:
    return -sum(score.logprob for score in model.score(text)) / math.log(2) / len(text)


def test_it_is_small_enough_to_travel_with_the_package() -> None:
    assert builtin_model().stat().st_size <= 8_000_000


def test_its_card_says_what_it_is_and_leaves_nothing_open() -> None:
    card = builtin_model().with_name("README.md").read_text("utf-8")
    assert "TODO" not in card
    for word in ("CDLA-Sharing-1.0", "bits per character", "bitnet.train.builtin"):
        assert word in card


def test_it_knows_simple_english(model: BitNet) -> None:
    assert bits_per_character(model, STORY) < 1.0


def test_a_story_in_order_is_likelier_than_the_same_sentences_shuffled(model: BitNet) -> None:
    sentences = STORY.split(". ")
    shuffled = ". ".join(sentences[::2] + sentences[1::2])
    assert bits_per_character(model, STORY) < bits_per_character(model, shuffled)


@pytest.mark.parametrize(
    "right, wrong",
    [
        ("The dogs are happy.", "The dogs is happy."),
        ("She went to the park.", "She goed to the park."),
        ("He gave her a ball.", "He gave she a ball."),
        ("Tom lost his hat.", "Tom lost him hat."),
    ],
)
def test_it_prefers_grammar(model: BitNet, right: str, wrong: str) -> None:
    likelihood = {
        text: sum(s.logprob for s in model.score(f"Once upon a time, there was a dog. {text}"))
        for text in (right, wrong)
    }
    assert likelihood[right] > likelihood[wrong]


def test_it_answers_a_request_with_a_story_that_ends(model: BitNet) -> None:
    for seed in range(4):
        answer = model.chat("Tell me a story about a dog.", seed=seed, temperature=0.7)
        assert model.stats is not None
        assert model.stats.finish_reason == "stop"
        assert len(answer) > 100
