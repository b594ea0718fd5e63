"""Held-out stories stay out, and the shape of a conversation is the chat template's."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from bitnet.train import corpus as data
from bitnet.train.stories import stories
from bitnet.train.vocabulary import BEGIN, END, END_OF_TURN, SPECIAL_TOKENS, train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in miniature, whose lower-cased file repeats the first one, as the real one does."""
    folder = tmp_path_factory.mktemp("corpus")
    told = [story.text for story in islice(stories(seed=9), 1400)]
    files = {name: [] for names, _ in data.MIX.values() for name in names}
    files["tinystories_a.txt"], files["tinystories_b.txt"] = told[:600], told[600:1200]
    for i, name in enumerate(name for name in files if not name.startswith("tinystories")):
        files[name] = told[1200 + 50 * i : 1250 + 50 * i]
    for name, texts in files.items():
        (folder / name).write_text(f"\n{data.SEPARATOR}\n".join(texts))
    lowered = "\n".join(text.replace("\n", "\n\n").lower() for text in told[:600])
    (folder / "tinystories_lowercase_c.txt").write_text(lowered)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path) -> data.Corpus:
    return data.read(folder)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer((story.text for story in islice(stories(seed=2), 300)), size=600)


def test_held_out_stories_are_whole_and_many(corpus: data.Corpus, folder: Path) -> None:
    raw = (folder / "tinystories_a.txt").read_text() + (folder / "tinystories_b.txt").read_text()
    assert len(set(corpus.held_out)) == data.HELD_OUT >= 300
    assert all(text in raw for text in corpus.held_out)


def test_no_held_out_story_is_trained_on_in_any_spelling(corpus: data.Corpus) -> None:
    trained = {key for texts in corpus.sources.values() for text in texts for key in data.keys(text)}
    assert not trained & {key for text in corpus.held_out for key in data.keys(text)}


def test_a_story_that_two_files_hold_is_trained_on_once(corpus: data.Corpus) -> None:
    lowered = [text.lower() for text in corpus.sources["tinystories"]]
    assert 600 < len(lowered) == len(set(lowered)) <= 1200 - data.HELD_OUT


def test_capitals_are_restored_to_lowercase_text() -> None:
    capitals = data.Capitals()
    capitals.learn('One day, Tim and Sue saw a dog. The dog saw Tim, and Sue saw the dog. "Oh!" said Tim.')
    assert capitals.restore('one day, i saw tim. "come!" said sue.') == 'One day, I saw Tim. "Come!" said Sue.'


def test_cleaning_joins_wrapped_lines_and_drops_the_title() -> None:
    assert data.clean("# A man\nHis hoe was\ntoo  short. “Oh,” he\nsaid.", wrapped=True) == (
        'His hoe was too short. "Oh," he said.'
    )


def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    text = "Zoë's naïve café: 日本 \U0001f642\n\n\tx = 1"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_have_the_first_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == [BEGIN, END, END_OF_TURN]


def test_a_conversation_is_spelled_as_the_chat_template_does(tokenizer: Tokenizer) -> None:
    tokens = data.encode(tokenizer, data.Document(turns=(("Hi!", "Hello!"),)))
    assert tokenizer.decode(tokens, skip_special_tokens=False) == (
        "<|begin_of_text|>User: Hi!<|eot_id|>Assistant: Hello!<|eot_id|>"
    )


def test_the_prompt_of_a_conversation_is_a_prefix_of_its_training_text(tokenizer: Tokenizer) -> None:
    prompt = [BEGIN, *tokenizer.encode("User: Hi!").ids, END_OF_TURN, *tokenizer.encode("Assistant: ").ids]
    assert data.encode(tokenizer, data.Document(turns=(("Hi!", "Hello!"),)))[: len(prompt)] == prompt


def test_the_mixture_gives_every_source_its_share(corpus: data.Corpus) -> None:
    documents = list(islice(data.mixture(corpus, seed=0), 2000))
    talk = sum(len(t) for d in documents if d.turns for t in data.texts(d))
    total = sum(len(t) for d in documents for t in data.texts(d))
    assert data.CHAT_SHARE < talk / total < data.CHAT_SHARE + data.REQUESTED


def test_the_grammar_gets_the_share_that_it_is_given(corpus: data.Corpus) -> None:
    texts = set(corpus.sources["tinystories"])
    documents = list(islice(data.mixture(corpus, 0, requested=0.0, own=0.7), 2000))
    total = sum(len(t) for d in documents for t in data.texts(d))
    stories = sum(len(d.text) for d in documents if d.text in texts)
    assert abs(stories / total - 0.45 * 0.3 / 0.52) < 0.02


@pytest.mark.parametrize("asked, least, most", [(0.0, 0.0, 0.0), (0.05, 0.02, 0.08), (0.9, 0.5, 0.95)])
def test_as_many_stories_answer_a_request_as_asked_for(
    corpus: data.Corpus, asked: float, least: float, most: float
) -> None:
    documents = list(islice(data.epochs(corpus.sources["tinystories"], 0, asked), 1000))
    assert least <= sum(bool(document.turns) for document in documents) / 1000 <= most
    whole = [document.text for document in documents if not document.turns]
    assert set(whole) <= set(corpus.sources["tinystories"])


def test_the_same_seed_makes_the_same_rows(corpus: data.Corpus, tokenizer: Tokenizer) -> None:
    one, two = (list(islice(data.rows(data.mixture(corpus, 3), tokenizer, 128), 150)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert np.shape(one) == (150, 128)
