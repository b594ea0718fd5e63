"""A grammar of children's stories: plots with a cast, drawn into stories without end, questions and requests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from bitnet.train.templates import Plot, Slots, parse, plots, sentences, tables, words, write

WHO = ("Who is the story about?", "Who is this story about?")
CHILDREN = ("girl", "boy")
HEROES, HERO_SHARES = ("animal", "figure", "child"), (0.4, 0.2, 0.4)
ALIKE = 0.6  # of the heroes after the first are of its kind
PRONOUNS = {
    "f": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "m": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}
SUFFIXES = {"A": "", "B": "2", "C": "3"}  # {he} is A's pronoun, {he2} B's, {heP} that of A's parent
VOWEL_SOUND = re.compile(r"(?!(?:uni|use|usu|one|eu|ewe|ukulele))[aeiou]|hour|honest", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Story:
    """topic: fits "a story about {topic}". things: the nouns drawn for it that its text names, its hero's first.
    questions: (question, answer) pairs that the text settles."""

    plot: str
    text: str
    topic: str
    things: tuple[str, ...]
    questions: tuple[tuple[str, str], ...]


def stories(seed: int) -> Iterator[Story]:
    """Stories without end, the same for the same seed."""
    rng = Random(seed)
    while True:
        yield tell(rng)


def tell(rng: Random, plot: Plot | None = None) -> Story:
    """One story; of any plot unless told which."""
    plot = plot or rng.choice(plots())
    slots = draw(plot, rng)
    if plot.morals:
        slots["moral"] = write(rng.choice(plot.morals), slots, rng)
    text = "\n".join(capitalize(tidy(write(line, slots, rng))) for line in plot.lines)
    questions = [(tidy(write(q, slots, rng)), tidy(write(a, slots, rng))) for q, a in plot.questions]
    if slots["A"] in text:
        questions.append((rng.choice(WHO), tidy(f"The story is about a {slots['kind']} named {slots['A']}.")))
    topic = tidy(write(rng.choice(plot.topics), slots, rng))
    return Story(plot.name, text, topic, named(plot, slots, text), tuple(questions))


def named(plot: Plot, slots: Slots, text: str) -> tuple[str, ...]:
    """The persons' nouns and the things of a plot, as far as the text has them."""
    nouns = [slots["noun" + SUFFIXES[role]] for role in SUFFIXES if role in plot.sources]
    drawn = {name: table for name, table in plot.sources.items() if name not in SUFFIXES}
    nouns += [slots[name] for name, table in drawn.items() if table in words("things")]
    return tuple(noun for noun in dict.fromkeys(nouns) if re.search(rf"\b{noun}\b", text))


def sentence(rng: Random) -> str:
    """One sentence, or two that belong together, of any construction."""
    template, drawn = rng.choice(sentences())
    slots: Slots = {}
    for name, table in drawn.items():
        slots |= pick(name, table, slots, rng)
    return capitalize(tidy(write(template, slots, rng)))


def draw(plot: Plot, rng: Random) -> Slots:
    """Cast the persons of one telling and draw its words."""
    elder = rng.choice(tables()["elders"])
    slots = {"P": elder[""], "Call": elder["call"]} | pronouns("P", elder["gender"])
    for name, source in plot.sources.items():
        slots |= cast(name, source, slots, rng) if name in SUFFIXES else pick(name, source, slots, rng)
    slots.setdefault("lives", "in a small house" if rng.random() < 0.5 else "in a small village")
    return slots


def pick(name: str, source: str, slots: Slots, rng: Random) -> Slots:
    """A row of a table, other than words already drawn."""
    if source == "petname":
        return {name: rng.choice([n for n in words("pet names") if n not in slots.values()])}
    if source == "person":
        gender = rng.choice("fm")
        free = [n for n in own_names(gender) if n not in slots.values()]
        return {name: rng.choice(free)} | {f"{name}.{form}": word for form, word in PRONOUNS[gender].items()}
    rows = tables()[source]
    row = rng.choice([r for r in rows if r[""] not in slots.values()] or rows)
    forms = {f"{name}.{form}" if form else name: write(parse(word), slots, rng) for form, word in row.items()}
    return forms | {f"a_{name}": article(row[""])}


def cast(role: str, source: str, slots: Slots, rng: Random) -> Slots:
    """A person: name, what it is ({kind}, {noun}), pronouns, and where A lives."""
    suffix = SUFFIXES[role]
    if source == "hero":
        source = rng.choices(HEROES, HERO_SHARES)[0]
        if "noun" in slots and rng.random() < ALIKE:
            source = next((kind for kind in HEROES[:2] if slots["noun"] in words(kind)), "child")
    gender = rng.choice("fm")
    taken = set(slots.values())
    lives = None
    if source == "child":
        noun, names = CHILDREN[gender == "m"], own_names(gender)
        adjective = rng.choice(words("child adjectives"))
    else:
        row = rng.choice([r for r in tables()[source] if r[""] not in taken])
        noun, lives, gender = row[""], row.get("home"), row.get("gender", gender)
        adjective = rng.choice(words(f"{source if f'{source} adjectives' in tables() else 'other'} adjectives"))
        names = words("pet names") if rng.random() < 0.6 else own_names(gender)
    name = rng.choice([n for n in names if n not in taken])
    person = {
        role: name,
        "noun" + suffix: noun,
        "kind" + suffix: f"{adjective} {noun}",
        "a_noun" + suffix: article(noun),
    }
    if lives and role == "A":
        person["lives"] = f"in {lives}"
    return person | pronouns(suffix, gender)


def own_names(gender: str) -> list[str]:
    return words("girl names" if gender == "f" else "boy names")


def pronouns(suffix: str, gender: str) -> Slots:
    """{he}, {him}, {his}, {himself}, {He} and {His}, each with the suffix."""
    forms = PRONOUNS[gender] | {name.capitalize(): PRONOUNS[gender][name].capitalize() for name in ("he", "his")}
    return {name + suffix: word for name, word in forms.items()}


def article(noun: str) -> str:
    return f"{'an' if VOWEL_SOUND.match(noun) else 'a'} {noun}"


def tidy(text: str) -> str:
    """Single spaces, none before a full stop, and "an" before a vowel."""
    text = re.sub(r" {2,}", " ", text).strip()
    text = re.sub(r" ([.,!?])", r"\1", text)
    return re.sub(r"\b([Aa]) (?=(\w+))", lambda m: m[1] + ("n " if VOWEL_SOUND.match(m[2]) else " "), text)


def capitalize(text: str) -> str:
    """A capital after a full stop. Not after a quotation, whose sentence may go on: "Help!" she cried."""
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)
