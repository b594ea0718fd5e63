"""A grammar of children's stories: plots with a cast, drawn into stories without end, questions and requests."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

from bitnet.train.templates import Plot, Slots, parse, plots, small_talk, tables, words, write

Turns = tuple[tuple[str, str], ...]  # (what the user says, what the assistant answers)

STORY_REQUESTS = (
    "Tell me a story about {}.",
    "Write a story about {}.",
    "Can you tell me a story about {}?",
    "Please tell me a story about {}.",
    "Write a short story about {}.",
    "I want a story about {}.",
    "Tell me a short story about {}.",
    "Write a children's story about {}.",
    "Tell a story about {}.",
    "Could you write a story about {}?",
    "Make up a story about {}.",
    "Give me a story about {}.",
)
WHO = ("Who is the story about?", "Who is this story about?")
CHILDREN = ("girl", "boy")
PRONOUNS = {
    "f": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "m": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}
SUFFIXES = {"A": "", "B": "2", "C": "3"}  # {he} is A's pronoun, {he2} B's, {heP} that of A's parent
VOWEL_SOUND = re.compile(r"(?!(?:uni|use|usu|one|eu|ewe|ukulele))[aeiou]|hour|honest", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Story:
    """topic: fits "a story about {topic}". questions: (question, answer) pairs that the text settles."""

    plot: str
    text: str
    topic: str
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
    questions.append((rng.choice(WHO), tidy(f"The story is about a {slots['kind']} named {slots['A']}.")))
    topic = tidy(write(rng.choice(plot.topics), slots, rng))
    return Story(plot.name, text, topic, tuple(questions))


def chat(rng: Random) -> Turns:
    """A short conversation: a story asked for, a question about a story, or small talk."""
    kind = rng.random()
    if kind < 0.08:
        said, answer = rng.choice(small_talk())
        return ((write(said, {}, rng), write(answer, {}, rng)),)
    story = tell(rng)
    if kind < 0.30:
        question, answer_ = rng.choice(story.questions)
        return ((f"{story.text}\n{question}", answer_),)
    request = rng.choice(STORY_REQUESTS).format(story.topic) if rng.random() < 0.93 else "Tell me a story."
    told = (request, story.text)
    return (told, rng.choice(story.questions)) if kind < 0.5 else (told,)


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
    rows = tables()[source]
    row = rng.choice([r for r in rows if r[""] not in slots.values()] or rows)
    forms = {f"{name}.{form}" if form else name: write(parse(word), slots, rng) for form, word in row.items()}
    return forms | {f"a_{name}": article(row[""])}


def cast(role: str, source: str, slots: Slots, rng: Random) -> Slots:
    """A person: name, what it is ({kind}, {noun}), pronouns, and where A lives."""
    suffix = SUFFIXES[role]
    if source == "hero":  # a child or an animal; the others are then what A is
        source = "child" if rng.random() < 0.65 else "animal"
        if "noun" in slots:
            source = "child" if slots["noun"] in CHILDREN else "animal"
    gender = rng.choice("fm")
    own_names = words("girl names" if gender == "f" else "boy names")
    taken = set(slots.values())
    lives = None
    if source == "child":
        noun, names = CHILDREN[gender == "m"], own_names
        adjective = rng.choice(words("child adjectives"))
    else:
        row = rng.choice([r for r in tables()[source] if r[""] not in taken])
        noun, lives = row[""], row.get("home")
        adjective = rng.choice(words(f"{source if f'{source} adjectives' in tables() else 'other'} adjectives"))
        names = words("pet names") if rng.random() < 0.6 else own_names
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


def main() -> None:
    """Write stories and conversations, for trying things out: python -m bitnet.train.stories DIR [COUNT]"""
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    folder.mkdir(parents=True, exist_ok=True)
    told = [story.text for story in islice(stories(0), count)]
    held_out = count // 50
    for name, texts in (("held_out.txt", told[:held_out]), ("stories.txt", told[held_out:])):
        (folder / name).write_text("\n<|endoftext|>\n".join(texts) + "\n", "utf-8")
    rng, roles = Random(1), ("user", "assistant")
    with (folder / "chat.jsonl").open("w", encoding="utf-8") as file:
        for _ in range(count // 5):
            messages = [{"role": role, "content": said} for turn in chat(rng) for role, said in zip(roles, turn)]
            print(json.dumps({"messages": messages}), file=file)


if __name__ == "__main__":
    main()
