"""Files of questions, in the layouts in which the field's test sets are passed around.

| layout | what a file holds |
|---|---|
| choices | JSON: `context` (`question`, `query`, `prompt`), `choices`, `answer` (`label`, `gold`): index or letter |
| hellaswag | JSON as the authors publish it (`ctx`, `endings`, `label`), or llama.cpp's text of six lines a question |
| piqa | JSON: `goal`, `sol1`, `sol2`; `label` in it, or lines of NAME_labels.lst or NAME-labels.lst beside the file |
| arc | JSON: `question`, `choices` with `text` and `label`, `answerKey`; AI2's own nesting too |
| answers | JSON: `instruction` with "Answer1: ... Answer2: ..." in it and `answer`, as LLM-Adapters has these sets |
| pairs | JSON: `sentence_good`, `sentence_bad` (BLiMP), or text: a worse line, then its better twin (Zorro) |
| references | JSON: `prompt` and `references`: what people wrote, a text or several |

JSON is one list or an object a line. Prompts are those of lm-evaluation-harness, so that results can be compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.errors import ParameterError

Record = Mapping[str, Any]
LABELS = ("{}_labels.lst", "{}-labels.lst")


@dataclass(frozen=True, slots=True)
class Question:
    """Which of `choices` follows `context`: the one at index `answer`. The context is empty where whole texts are
    compared."""

    context: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not all(self.choices):
            raise ValueError("a question has at least two choices, and none is empty")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"the answer is {self.answer}, of {len(self.choices)} choices")


@dataclass(frozen=True, slots=True)
class Passage:
    """A prompt, and what people wrote after it."""

    prompt: str
    references: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.references or not all(each.strip() for each in self.references):
            raise ValueError("a passage has at least one reference, and none is empty")


def read_questions(path: Path, layout: str = "auto") -> list[Question | Passage]:
    """The questions of a file, or of every .txt, .json and .jsonl file of a folder, in the order of their names; all
    of them with choices, or all passages."""
    if layout not in ("auto", *LAYOUTS):
        raise ParameterError(f"The layout is {layout!r}; expected auto, {', '.join(LAYOUTS)}.")
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix in (".txt", ".json", ".jsonl"))
        found: list[Question | Passage] = [question for each in files for question in read_questions(each, layout)]
    else:
        found = read_file(path, layout)
    if not found:
        raise ParameterError(f"{path} holds no questions.")
    if len(set(map(type, found))) > 1:
        raise ParameterError(f"{path} holds questions with choices and passages with references.", "Keep them apart.")
    return found


def read_file(path: Path, layout: str) -> list[Question | Passage]:
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParameterError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    if text.lstrip()[:1] in ("{", "["):
        return from_json(path, text, layout)
    return from_lines(path, [line.strip() for line in text.split("\n") if line.strip()], layout)


def from_json(path: Path, text: str, layout: str) -> list[Question | Passage]:
    records = parse(path, text)
    labels = read_labels(path)
    if labels is not None and len(labels) != len(records):
        raise ParameterError(f"{path} has {len(records)} questions and {len(labels)} labels beside it.")
    found = []
    for i, record in enumerate(records):
        try:
            if not isinstance(record, Mapping):
                raise ValueError("it is no object")
            if labels is not None and "label" not in record:
                record = {**record, "label": labels[i]}
            found.append(LAYOUTS[layout if layout != "auto" else layout_of(record)](record))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ParameterError(f"{path}, question {i + 1}: {why}.") from error
    return found


def parse(path: Path, text: str) -> Sequence[Any]:
    """The records of a JSON list, or of lines of JSON."""
    if text.lstrip().startswith("["):
        return list(load(text, str(path)))
    lines = enumerate(text.split("\n"), 1)  # not at U+2028 and its like, which JSON's texts may hold
    return [load(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def load(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{what} is not valid JSON: {error}.") from error


def read_labels(path: Path) -> list[int] | None:
    for name in LABELS:
        beside = path.with_name(name.format(path.stem))
        if beside.exists():
            try:
                return [int(line) for line in beside.read_text("utf-8").split()]
            except ValueError as error:
                raise ParameterError(f"{beside} holds something else than numbers: {error}.") from error
    return None


def layout_of(record: Record) -> str:
    for layout, keys in KEYS.items():
        if all(key in record for key in keys):
            return layout
    raise ValueError(f"its keys ({', '.join(list(record)[:8])}) are those of no known layout")


def choices(record: Record) -> Question:
    context = first_of(record, "context", "question", "query", "prompt", "ctx")
    answer = first_of(record, "answer", "label", "gold")
    texts = tuple(map(str, record["choices"]))
    return Question(str(context), spaced(str(context), texts), place(answer, texts))


def place(answer: Any, texts: Sequence[str]) -> int:
    """An answer that is an index, a letter as of multiple choice, or the choice itself."""
    if isinstance(answer, str) and not answer.isdecimal():
        if texts.count(answer) == 1:
            return texts.index(answer)
        if len(answer) == 1 and "A" <= answer <= "Z":
            return ord(answer) - ord("A")
        raise ValueError(f"the answer is {answer!r}, which is none of the choices, their numbers and letters")
    return int(answer)


def first_of(record: Record, *keys: str) -> Any:
    for key in keys:
        if key in record:
            return record[key]
    raise KeyError(keys[0])


def hellaswag(record: Record) -> Question:
    """With lm-evaluation-harness's tidying: WikiHow's marks become sentences."""
    context = record["ctx"] if "ctx" in record else f"{record['ctx_a']} {str(record['ctx_b']).capitalize()}"
    topic = f"{record['activity_label']}: " if record.get("activity_label") else ""
    endings = tuple(tidy(str(ending)) for ending in record["endings"])
    return Question(tidy(f"{topic}{context}"), spaced("", endings), int(record["label"]))


def tidy(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def piqa(record: Record) -> Question:
    return asked(str(record["goal"]), (str(record["sol1"]), str(record["sol2"])), int(record["label"]))


def arc(record: Record) -> Question:
    question, listed = record["question"], record.get("choices")
    if isinstance(question, Mapping):  # AI2's files
        question, listed = question["stem"], question["choices"]
    if isinstance(listed, Mapping):  # the hub's
        listed = [{"text": t, "label": mark} for t, mark in zip(listed["text"], listed["label"], strict=True)]
    assert listed is not None
    labels = [str(each["label"]) for each in listed]
    return asked(str(question), tuple(str(each["text"]) for each in listed), labels.index(str(record["answerKey"])))


def answers(record: Record) -> Question:
    text = re.split(r"\n\s*Answer format:", str(record["instruction"]))[0]
    question, *listed = re.split(r"\s*\bAnswer\d+:\s*", text)
    question = question.removeprefix("Please choose the correct answer to the question:").strip()
    return asked(question, tuple(map(str.strip, listed)), int(str(record["answer"]).removeprefix("answer")) - 1)


def pair(record: Record) -> Question:
    return Question("", (str(record["sentence_good"]), str(record["sentence_bad"])), 0)


def passage(record: Record) -> Passage:
    given = record["references"]
    texts = (given,) if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not all(isinstance(each, str) for each in texts):
        raise ValueError("its references are no texts")
    return Passage(str(first_of(record, "prompt", "context", "question", "query")), tuple(texts))


def asked(question: str, texts: tuple[str, ...], answer: int) -> Question:
    context = f"Question: {question}\nAnswer:"
    return Question(context, spaced(context, texts), answer)


def spaced(context: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    """A blank before each choice, unless there is white space on either side."""
    apart = context[-1:].isspace()
    return tuple(text if apart or text[:1].isspace() else f" {text}" for text in texts)


def from_lines(path: Path, lines: list[str], layout: str) -> list[Question | Passage]:
    if layout == "auto":
        layout = "hellaswag" if len(lines) > 5 and lines[1] in ("0", "1", "2", "3") else "pairs"
    if layout not in TEXTS:
        raise ParameterError(f"{path} is no JSON, which the layout {layout!r} needs.")
    size, read = TEXTS[layout]
    if len(lines) % size:
        raise ParameterError(f"{path} has {len(lines)} lines; a multiple of {size} was expected ({layout}).")
    try:
        return [read(lines[i : i + size]) for i in range(0, len(lines), size)]
    except ValueError as error:
        raise ParameterError(f"{path}: {error}.") from error


def six_lines(lines: Sequence[str]) -> Question:
    return Question(lines[0], spaced(lines[0], tuple(lines[2:])), int(lines[1]))


def two_lines(lines: Sequence[str]) -> Question:
    return Question("", (lines[1], lines[0]), 0)


LAYOUTS: dict[str, Callable[[Record], Question | Passage]] = {
    "choices": choices, "hellaswag": hellaswag, "piqa": piqa, "arc": arc, "answers": answers, "pairs": pair,
    "references": passage,
}  # fmt: skip
TEXTS: dict[str, tuple[int, Callable[[Sequence[str]], Question]]] = {
    "hellaswag": (6, six_lines),
    "pairs": (2, two_lines),
}
KEYS = {  # what tells the layouts apart, the most particular first
    "pairs": ("sentence_good", "sentence_bad"),
    "piqa": ("goal", "sol1", "sol2"),
    "hellaswag": ("endings", "label"),
    "arc": ("question", "answerKey"),
    "answers": ("instruction", "answer"),
    "choices": ("choices",),
    "references": ("references",),
}
