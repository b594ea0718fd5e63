"""Measures the built-in model, or another that tells stories: likelihood, topics, and texts to be judged unseen.

python tools/story_trial.py bits --held-out RUN/held_out.txt -m stories.gguf
python tools/story_trial.py topics -m stories.gguf -n 200
python tools/story_trial.py samples -m old.gguf -m new.gguf --out DIR

Samples are in DIR/samples.txt; which is whose, in DIR/key.json.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from bitnet import BitNet
from bitnet.train.conversations import is_held_out
from bitnet.train.stories import article
from bitnet.train.templates import words

SEPARATOR = "<|endoftext|>"
CONTEXT = 512  # of the built-in model
TEMPERATURE = 0.7
# Of what children and their parents may ask; none is a request of the grammar.
REQUESTS = (
    "Tell me a story about a fox and a ball.", "Tell me a story about a brave mouse.", "Tell me a story about rain.",
    "Write a story about a girl named Nora and her red kite.", "Tell me a story about a dragon who likes tea.",
    "Tell me a short story about a penguin.", "Tell me a story about two brothers and a boat.",
    "Can you tell me a bedtime story about the moon?", "Tell me a story about a key, a door and a cat.",
    "Tell me a story with a happy ending about a lost dog.", "I want a story about a train and a cow.",
    "Tell me a story about a boy who is afraid of dogs.", "Write a story about a bear who cannot sleep.",
    "Tell me a story about a queen and a frog.", "Please tell me a story about a birthday cake.",
    "Tell me a story about a duck and an umbrella.", "Once upon a time", "One day, a little boy",
    "The old man had a secret.", "Lily and Tom were playing in the garden when",
    "There was once a small green frog who", "It was a cold night, and the wind", "Ben had a new toy car.",
    "Mia was sad because", "Deep in the forest, there was a house.",
)  # fmt: skip
PLAIN = REQUESTS.index("Once upon a time")  # from here on: to be continued, not answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("measure", choices=("bits", "topics", "samples"))
    add("-m", "--model", type=Path, action="append", required=True)
    add("-n", "--count", type=int, default=200, help="requests, of topics")
    add("--held-out", type=Path, help="stories, of bits")
    add("--out", type=Path, help="folder for samples")
    add("--seed", type=int, default=0, help="of the first sample; each has the next")
    add("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.measure == "samples":
        samples(given)
        return
    for path in given.model:
        with BitNet(path, threads=given.threads) as model:
            found = bits(model, given.held_out) if given.measure == "bits" else topics(model, given.count)
        print(json.dumps({"model": str(path), **found}), flush=True)


def bits(model: BitNet, held_out: Path) -> dict[str, float]:
    """Bits per character over the stories that fit into the context, each alone."""
    total, characters, count = 0.0, 0, 0
    for story in held_out.read_text("utf-8").split(SEPARATOR):
        if len(model.tokenizer.encode(story)) + 1 > CONTEXT:
            continue
        total -= sum(score.logprob for score in model.score(story)) / math.log(2)
        characters, count = characters + len(story), count + 1
    return {"bits_per_character": round(total / characters, 4), "stories": count}


def pairs(count: int) -> Iterator[tuple[str, str]]:
    """An animal and a thing that were never asked for together in training."""
    rng = Random(2026)
    held_out = [(a, o) for a in words("animal") for o in words("object") if is_held_out(a, o)]
    yield from rng.sample(held_out, min(count, len(held_out)))


def topics(model: BitNet, count: int) -> dict[str, float]:
    """The share of requested words that an answer has, and of answers that have both."""
    found: list[tuple[bool, bool]] = []
    for seed, (animal, thing) in enumerate(pairs(count)):
        said = f"Tell me a story about {article(animal)} and {article(thing)}."
        answer = model.chat(said, seed=seed, temperature=TEMPERATURE, max_tokens=400)
        found.append((names(answer, animal), names(answer, thing)))
    first, second = (sum(each) / len(found) for each in zip(*found))
    both = sum(all(pair) for pair in found) / len(found)
    return {"words": round((first + second) / 2, 4), "animal": first, "thing": second, "both": both, "n": len(found)}


def names(text: str, word: str) -> bool:
    return bool(re.search(rf"\b{word}(s|es)?\b", text.lower()))


def samples(given: argparse.Namespace) -> None:
    """Every request put to every model, in an order that does not show which is which."""
    told: list[tuple[str, str, str]] = []
    for path in given.model:
        with BitNet(path, threads=given.threads) as model:
            for number, said in enumerate(REQUESTS):
                options = {"seed": given.seed + number, "temperature": TEMPERATURE, "max_tokens": 350}
                plain = number >= PLAIN
                text = said + model.generate(said, **options) if plain else model.chat(said, **options)
                told.append((said, text.strip(), str(path)))
    Random(len(told)).shuffle(told)
    given.out.mkdir(parents=True, exist_ok=True)
    lines = [f"## {i}. {said}\n\n{text}\n" for i, (said, text, _) in enumerate(told, 1)]
    (given.out / "samples.txt").write_text("\n".join(lines), "utf-8")
    key = {i: path for i, (_, _, path) in enumerate(told, 1)}
    (given.out / "key.json").write_text(json.dumps(key, indent=0) + "\n")


if __name__ == "__main__":
    main()
