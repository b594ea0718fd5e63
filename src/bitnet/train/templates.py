"""The language of the story grammar, and its files in grammar/: [a|b|] is a choice, {name} a slot."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from random import Random

Template = tuple["str | Slot | Choice", ...]
Slots = dict[str, str]
Row = dict[str, str]  # a word under "", its other forms under their names

LITERAL = re.compile(r"[^\[{|\]]+")
PLOTS = ("lessons", "things", "adventures")
DRAWN = re.compile(r"\{(([A-Za-z]+)\d)")  # in a sentence: {noun1.pl} is a form of a word of the table noun


@dataclass(frozen=True, slots=True)
class Slot:
    name: str


@dataclass(frozen=True, slots=True)
class Choice:
    options: tuple[Template, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """sources: slot -> who or what is drawn for it. questions: with their answers, which the text settles."""

    name: str
    sources: dict[str, str]
    topics: list[Template] = field(default_factory=list)
    morals: list[Template] = field(default_factory=list)
    questions: list[tuple[Template, Template]] = field(default_factory=list)
    lines: list[Template] = field(default_factory=list)


def parse(source: str) -> Template:
    """Raises ValueError where brackets do not match."""
    template, end = parse_parts(source, 0, "")
    if end != len(source):
        raise ValueError(f"{source[end]!r} at {end} matches no '[' in the template {source!r}")
    return template


def parse_parts(source: str, at: int, stops: str) -> tuple[Template, int]:
    """The parts from `at` up to one of `stops`, and where that is."""
    parts: list[str | Slot | Choice] = []
    while at < len(source) and source[at] not in (stops or "|]"):
        if source[at] == "[":
            choice, at = parse_choice(source, at)
            parts.append(choice)
        elif source[at] == "{":
            end = source.index("}", at)
            parts.append(Slot(source[at + 1 : end]))
            at = end + 1
        else:
            literal = LITERAL.match(source, at)
            assert literal
            parts.append(literal[0])
            at = literal.end()
    return tuple(parts), at


def parse_choice(source: str, at: int) -> tuple[Choice, int]:
    options: list[Template] = []
    while source[at] != "]":
        option, at = parse_parts(source, at + 1, "|]")
        options.append(option)
        if at == len(source):
            raise ValueError(f"a '[' is not closed in the template {source!r}")
    return Choice(tuple(options)), at + 1


def write(template: Template, slots: Slots, rng: Random) -> str:
    """Draw the choices; fill the slots from `slots` or else from the phrases."""
    out: list[str] = []
    for part in template:
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, Choice):
            out.append(write(part.options[int(rng.random() * len(part.options))], slots, rng))
        else:
            out.append(slots[part.name] if part.name in slots else write(phrases()[part.name], slots, rng))
    return "".join(out)


def lines(name: str) -> Iterator[str]:
    """The lines of a file of the grammar, without those that explain it."""
    text = (files("bitnet.train") / "grammar" / name).read_text("utf-8")
    return (line for line in text.splitlines() if not line.startswith("%%"))


@cache
def phrases() -> dict[str, Template]:
    return {name: parse(text) for name, _, text in (line.partition(": ") for line in lines("phrases.txt")) if text}


@cache
def small_talk() -> tuple[tuple[Template, Template], ...]:
    pairs = (line.partition(" => ") for line in lines("small_talk.txt"))
    return tuple((parse(said), parse(answer)) for said, _, answer in pairs if answer)


@cache
def sentences() -> tuple[tuple[Template, dict[str, str]], ...]:
    """Templates, and the table that each of their words is drawn from."""
    return tuple((parse(line), dict(DRAWN.findall(line))) for line in lines("sentences.txt") if line)


@cache
def requests() -> dict[str, tuple[Template, ...]]:
    return {name: tuple(map(parse, found)) for name, found in headed("requests.txt").items()}


def headed(file: str) -> dict[str, list[str]]:
    """The lines below each heading."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in lines(file):
        if line.startswith("= "):
            name = line[2:]
        elif line:
            found.setdefault(name, []).append(line)
    return found


@cache
def tables() -> dict[str, tuple[Row, ...]]:
    """words.txt: the rows of each table."""
    found = headed("words.txt")
    return {name: tuple(parse_row(row) for line in rows for row in line.split("|")) for name, rows in found.items()}


def parse_row(row: str) -> Row:
    word, *forms = row.split("; ")
    return {"": word} | dict(form.split("=", 1) for form in forms)


def words(table: str) -> list[str]:
    return [row[""] for row in tables()[table]]


@cache
def plots() -> tuple[Plot, ...]:
    found: list[Plot] = []
    for line in (line for name in PLOTS for line in lines(f"plots/{name}.txt")):
        mark, rest = line[:2], line[2:]
        if mark == "# ":
            name, *sources = rest.split()
            found.append(Plot(name, dict(source.split("=", 1) for source in sources)))
        elif mark == "! ":
            found[-1].topics.append(parse(rest))
        elif mark == "* ":
            found[-1].morals.append(parse(rest))
        elif mark == "? ":
            question, answer = rest.split(" => ")
            found[-1].questions.append((parse(question), parse(answer)))
        elif line:
            found[-1].lines.append(parse(line))
    return tuple(found)
