"""Conversations about the grammar's stories: requests that name what is in them, questions, beginnings, small talk."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from itertools import combinations, islice
from pathlib import Path
from random import Random
from zlib import crc32

from bitnet.train.stories import Story, article, stories, tell
from bitnet.train.templates import requests, small_talk, write

Turns = tuple[tuple[str, str], ...]  # (what the user says, what the assistant answers)

SHORT, LONG = 700, 1400  # characters of a story that may be asked for as short, from which on as long
HAPPY_END = "And they all lived happily ever after."
LOWERED = 0.15  # of what users say, written without capitals and marks


def chat(rng: Random) -> Turns:
    """A short conversation: small talk, a question on a story that is given, the rest of one, or a story asked for."""
    kind = rng.random()
    if kind < 0.06:
        said, answer = rng.choice(small_talk())
        return ((typed(write(said, {}, rng), rng), write(answer, {}, rng)),)
    story = tell(rng)
    if kind < 0.18:
        (question, answered), *more = rng.sample(story.questions, min(len(story.questions), rng.choice((1, 1, 2))))
        first = (f"{question} {story.text}" if rng.random() < 0.2 else f"{story.text}\n{question}", answered)
        return (first, *more)
    if kind < 0.26:
        return (continued(story.text, rng),)
    told = asked_for(story, rng)
    questions = rng.sample(story.questions, min(len(story.questions), rng.choice((0, 0, 0, 1, 2))))
    return (told, *((typed(question, rng), answer_) for question, answer_ in questions))


def asked_for(story: Story, rng: Random) -> tuple[str, str]:
    """A request that this story fulfils, and the story."""
    happy = rng.random() < 0.06
    text = story.text if not happy or story.text.endswith(HAPPY_END) else f"{without_end(story.text)} {HAPPY_END}"
    if rng.random() < 0.25:
        return request(text, rng, topic=story.topic, happy=happy), text
    return request(text, rng, things=wanted(story.things, rng), happy=happy), text


def request(text: str, rng: Random, *, topic: str = "", things: Sequence[str] = (), happy: bool = False) -> str:
    """What a user may have said to be told this text: a topic, things that it names, or any story."""
    length = "short " if len(text) < SHORT else "long " if len(text) > LONG else ""
    slots = {
        "length": length if rng.random() < 0.25 else "",
        "ending": " with a happy ending" if happy else "",
        "topic": topic or listed([article(thing) for thing in things]),
        "words": listed(things),
    }
    kind = "any" if not slots["topic"] or rng.random() < 0.03 else "about"
    if kind == "about" and len(things) > 1 and rng.random() < 0.15:
        kind = "words"
    return typed(write(rng.choice(requests()[kind]), slots, rng), rng)


def wanted(things: Sequence[str], rng: Random) -> list[str]:
    """One to three of the things of a story, no two of which are held out."""
    drawn = rng.sample(things, min(len(things), rng.choice((1, 2, 2, 2, 3))))
    return drawn[:1] if any(is_held_out(*pair) for pair in combinations(drawn, 2)) else drawn


def is_held_out(one: str, other: str) -> bool:
    """Whether these two things are never asked for together in training, so that asking for them is a test."""
    return crc32(" ".join(sorted((one, other))).encode()) % 16 == 0


def continued(text: str, rng: Random) -> tuple[str, str]:
    """The beginning of a text with a request to go on, and the rest."""
    ends = [m.end() for m in re.finditer(r"[.!?]\"?\s", text)]
    cut = rng.choice(ends[: max(1, len(ends) // 2)] or [len(text)])
    beginning = write(rng.choice(requests()["continue"]), {"beginning": text[:cut].strip()}, rng)
    return beginning, text[cut:].strip() or HAPPY_END


def listed(items: Sequence[str]) -> str:
    """a, b and c"""
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def without_end(text: str) -> str:
    return text.removesuffix(" The end.")


def typed(said: str, rng: Random) -> str:
    """As somebody in a hurry types it, now and then."""
    return said.lower().rstrip(".?!") if rng.random() < LOWERED else said


def main() -> None:
    """Write stories and conversations, for trying things out: python -m bitnet.train.conversations DIR [COUNT]"""
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
