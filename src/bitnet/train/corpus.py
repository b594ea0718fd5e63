"""The built-in model's text, from a folder of files to rows of tokens: clean, hold out, mix, tokenise."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

from tokenizers import Tokenizer

from bitnet.train import conversations, stories, templates
from bitnet.train.data import Words, pack, words_of
from bitnet.train.vocabulary import BEGIN, END, END_OF_TURN

SEPARATOR = "<|endoftext|>"
HELD_OUT = 320  # whole stories of TinyStories
KEYWORDS = sorted({w for name in ("animal", "figure", *templates.words("things")) for w in templates.words(name)})


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, or a conversation of (user, assistant) turns."""

    text: str = ""
    turns: conversations.Turns = ()


@dataclass(frozen=True, slots=True)
class Corpus:
    """Cleaned texts by source, and the held-out stories that none of them contains."""

    sources: dict[str, list[str]]
    held_out: list[str]


# source -> (files, share of the training tokens)
MIX: dict[str, tuple[tuple[str, ...], float]] = {
    "tinystories": (("tinystories_a.txt", "tinystories_b.txt", "tinystories_lowercase_c.txt"), 0.30),
    "simple": (("asp_en_ccby.txt", "pb_en_ccby.txt"), 0.03),
    "tales": (("fairytaleqa_stories.txt", "aesop_for_children.txt"), 0.02),
}
GRAMMAR_SHARE, CHAT_SHARE, SENTENCES_SHARE = 0.18, 0.42, 0.05
OWN = GRAMMAR_SHARE + CHAT_SHARE + SENTENCES_SHARE
REQUESTED, CONTINUED = 0.05, 0.05  # of TinyStories: told as the answer to the user, and so as the rest of what he began
UNCAPITALIZED = 0.4  # of the paragraphs of single sentences


def read(folder: Path) -> Corpus:
    """Read every file of MIX; hold out whole stories first, then drop them and their duplicates everywhere."""
    capitals = Capitals()
    sources: dict[str, list[str]] = {}
    for source, (names, _) in MIX.items():
        texts = [text for name in names for text in documents(folder / name, capitals)]
        sources[source] = unique(texts)
    held_out = Random(0).sample([t for t in sources["tinystories"][:5000] if len(t) > 300], HELD_OUT)
    taken = {key for text in held_out for key in keys(text)}
    kept = {source: [t for t in texts if not taken & keys(t)] for source, texts in sources.items()}
    return Corpus(kept, held_out)


def documents(path: Path, capitals: Capitals) -> Iterator[str]:
    """The texts of one file, cleaned. The lower-cased file gets the capitals that the earlier files teach."""
    raw = path.read_text("utf-8", errors="replace")
    lowercase = "lowercase" in path.name
    # The lower-cased file parts paragraphs with a blank line and stories with none.
    pieces = re.split(r"(?<!\n)\n(?!\n)", raw) if lowercase else raw.split(SEPARATOR)
    for piece in pieces:
        text = clean(piece, wrapped=path.name.startswith(("asp", "pb", "aesop")))
        if not plausible(text):
            continue
        if lowercase:
            text = capitals.restore(text)
        elif path.name.startswith("tinystories"):
            capitals.learn(text)
        yield text


PLAIN = str.maketrans("“”‘’–—\u00a0\t", "\"\"''--  ", "\ufeff")
LETTERS = "éèñçáíóúüö"  # beside ASCII; a text with any other character is left out


def clean(text: str, wrapped: bool = False) -> str:
    """Plain quotes, single spaces, one newline between paragraphs; the lines of a wrapped text are joined."""
    text = re.sub(r"^#.*\n", "", text.translate(PLAIN).replace("…", "...").strip())
    text = re.sub(r"\s*\n\s*", " " if wrapped else "\n", text)
    return re.sub(r" {2,}", " ", text).strip()


def plausible(text: str) -> bool:
    """Long enough, ending as a sentence does, in plain letters."""
    return len(text) > 80 and text[-1] in ".!?\"'" and all(c == "\n" or " " <= c <= "~" or c in LETTERS for c in text)


def keys(text: str) -> set[str]:
    """Marks by which a duplicate is known, whatever its case and punctuation: its beginning and its end."""
    letters = re.sub(r"[^a-z]", "", text.lower())
    return {"^" + letters[:120], letters[-120:] + "$"}


def unique(texts: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    kept = []
    for text in texts:
        if not seen & keys(text):
            kept.append(text)
        seen |= keys(text)
    return kept


# After '!"' a sentence begins or goes on: "Help!" she cried.
WITHIN, AFTER_SPEECH = re.compile(r"(?<=[a-z,] )[A-Za-z]+"), re.compile(r"(?<=[!?]['\"] )[A-Za-z]+")
SENTENCE_START = re.compile(r"""((?:^|\n|[.!?] |\.['"] |(?:^|\s)['"])['"]?)([a-z])""")


class Capitals:
    """Which words are written with a capital, within a sentence and after speech; learnt from text that has them."""

    def __init__(self) -> None:
        self.upper: Counter[str] = Counter()
        self.total: Counter[str] = Counter()

    def learn(self, text: str) -> None:
        for mark, pattern in (("", WITHIN), ("!", AFTER_SPEECH)):
            for word in pattern.findall(text):
                self.total[mark + word.lower()] += 1
                self.upper[mark + word.lower()] += word[0].isupper()

    def restore(self, text: str) -> str:
        """Capitals for names, "I" and the beginnings of sentences."""
        text = re.sub(r"(?<![a-z'])[a-z]{2,}", lambda m: self.spell(m[0]), text)
        text = re.sub(r"(?<![A-Za-z'])i(?![A-Za-z])", "I", text)
        text = AFTER_SPEECH.sub(lambda m: self.spell(m[0], "!"), text)
        return SENTENCE_START.sub(lambda m: m[1] + m[2].upper(), text)

    def spell(self, word: str, mark: str = "") -> str:
        key = mark + word.lower()
        return word[0].upper() + word[1:] if 2 * self.upper[key] > self.total[key] else word


def mixture(corpus: Corpus, seed: int, requested: float = REQUESTED, own: float = OWN) -> Iterator[Document]:
    """Documents without end, each source at its share of the text.

    requested: of TinyStories, told as answers. own: of all, from the grammar; its kinds, and the others, keep their
    proportions.
    """
    more, less = own / OWN, (1 - own) / (1 - OWN)
    streams = [
        (GRAMMAR_SHARE * more, grammar(seed)),
        (CHAT_SHARE * more, talks(seed + 1)),
        (SENTENCES_SHARE * more, paragraphs(seed + 100)),
    ]
    for i, (source, (_, share)) in enumerate(MIX.items()):
        answers = requested if source == "tinystories" else 0.0
        streams.append((share * less, epochs(corpus.sources[source], seed + 2 + i, answers)))
    spent = [0.0] * len(streams)
    while True:
        next_source = min(range(len(streams)), key=lambda i: spent[i] / streams[i][0])
        document = next(streams[next_source][1])
        spent[next_source] += sum(map(len, texts(document)))
        yield document


def texts(document: Document) -> Iterator[str]:
    """What is written in it, piece by piece."""
    yield document.text
    for turn in document.turns:
        yield from turn


def grammar(seed: int) -> Iterator[Document]:
    return (Document(story.text) for story in stories.stories(seed))


def talks(seed: int) -> Iterator[Document]:
    rng = Random(seed)
    while True:
        yield Document(turns=conversations.chat(rng))


def paragraphs(seed: int) -> Iterator[Document]:
    """Single sentences that have nothing to do with each other."""
    rng = Random(seed)
    while True:
        text = " ".join(stories.sentence(rng) for _ in range(rng.randint(4, 12)))
        yield Document(text.lower() if rng.random() < UNCAPITALIZED else text)


def epochs(texts: list[str], seed: int, requested: float) -> Iterator[Document]:
    """Every text once in a new order, again and again; some as the answer to a request for a story."""
    for epoch in count():
        rng = Random(f"{seed} {epoch}")
        for text in rng.sample(texts, len(texts)):
            told = rng.random()
            yield Document(text) if told >= requested else as_answer(text, rng, continued=told < CONTINUED)


def as_answer(text: str, rng: Random, continued: bool) -> Document:
    """A text that was asked for by its beginning, or by some of the things that it names more than once."""
    if continued:
        return Document(turns=(conversations.continued(text, rng),))
    words = Counter(re.findall(r"[a-z]+", text.lower()))
    things = conversations.wanted([word for word in KEYWORDS if words[word] > 1], rng)
    return Document(turns=((conversations.request(text, rng, things=things), text),)) if things else Document(text)


def encode(tokenizer: Tokenizer, document: Document) -> list[int]:
    """Begin, text, end; a turn as the chat template writes it, its pieces tokenised apart as when the model is run."""

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    if not document.turns:
        return [BEGIN, *ids(document.text), END]
    tokens = [BEGIN]
    for user, assistant in document.turns:
        tokens += [*ids(f"User: {user}"), END_OF_TURN, *ids("Assistant: "), *ids(assistant), END_OF_TURN]
    return tokens


def rows(documents: Iterable[Document], tokenizer: Tokenizer, length: int) -> Iterator[Words]:
    """The documents packed into rows of `length` words, all of them learnt."""
    return pack((words_of(encode(tokenizer, document)) for document in documents), length, END)
