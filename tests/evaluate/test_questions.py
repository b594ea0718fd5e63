"""The layouts of test sets, each from an example as its publishers write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitnet.errors import ParameterError
from bitnet.evaluate.questions import Question, read_questions

PIQA = {"goal": "open a jar", "sol1": "twist the lid", "sol2": "sing to it"}
HUB_ARC = {
    "question": "What falls?",
    "choices": {"text": ["rain", "smoke", "heat"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
AI2_ARC = {
    "question": {"stem": "What falls?", "choices": [{"text": "smoke", "label": "1"}, {"text": "rain", "label": "2"}]},
    "answerKey": "2",
}
ADAPTERS = {
    "instruction": "Please choose the correct answer to the question: Who flies?\n\n"
    "Answer1: a fish Answer2: a bird Answer3: a stone\n\nAnswer format: answer1/answer2/answer3",
    "input": "",
    "output": "the correct answer is answer2",
    "answer": "answer2",
}
HELLASWAG = {
    "activity_label": "Roof",
    "ctx_a": "A man sits [substep] on a roof.",
    "ctx_b": "he",
    "endings": ["sleeps.", "sings  loud."],
    "label": "1",
}
SIX = "Roof: A man is on a roof. he\n3\nwraps.\nrips.\nholds.\npulls.\n"


def write(folder: Path, name: str, *records: Any) -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, records)), "utf-8")
    return path


@pytest.mark.parametrize(
    "record, context, choices, answer",
    [
        ({**PIQA, "label": 1}, "Question: open a jar\nAnswer:", (" twist the lid", " sing to it"), 1),
        (HUB_ARC, "Question: What falls?\nAnswer:", (" rain", " smoke", " heat"), 1),
        (AI2_ARC, "Question: What falls?\nAnswer:", (" smoke", " rain"), 1),
        (ADAPTERS, "Question: Who flies?\nAnswer:", (" a fish", " a bird", " a stone"), 1),
        (HELLASWAG, "Roof: A man sits on a roof. He", (" sleeps.", " sings loud."), 1),
        ({"sentence_good": "Dogs bark.", "sentence_bad": "Dogs barks."}, "", ("Dogs bark.", "Dogs barks."), 0),
        ({"context": "A b", "choices": ["c", " d"], "answer": 0}, "A b", (" c", " d"), 0),
        ({"question": "A\n", "choices": ["c", "d"], "label": 1}, "A\n", ("c", "d"), 1),
    ],
)
def test_layouts_are_told_apart(
    tmp_path: Path, record: dict[str, Any], context: str, choices: tuple[str, ...], answer: int
) -> None:
    assert read_questions(write(tmp_path, "q.jsonl", record, record)) == [Question(context, choices, answer)] * 2
    (tmp_path / "q.json").write_text(json.dumps([record], indent=1))
    assert read_questions(tmp_path / "q.json") == [Question(context, choices, answer)]


def test_labels_beside_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "valid.jsonl", PIQA, PIQA)
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    assert [each.answer for each in read_questions(path)] == [1, 0]
    (tmp_path / "valid-labels.lst").write_text("1\n")
    with pytest.raises(ParameterError, match="2 questions and 1 labels"):
        read_questions(path)


@pytest.mark.parametrize("answer", [1, "1", "B", "sea"])
def test_an_answer_is_an_index_a_letter_or_a_choice(answer: Any, tmp_path: Path) -> None:
    """In a file as Windows writes it, of texts with line separators that end no line."""
    record = {"question": "Where\u2028to?", "choices": ["den", "sea"], "answer": answer}
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{json.dumps(record, ensure_ascii=False)}\r\n".encode() * 2)
    assert read_questions(path) == [Question("Where\u2028to?", (" den", " sea"), 1)] * 2


def test_labels_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    (tmp_path / "piqa.jsonl").write_text(json.dumps(PIQA))
    (tmp_path / "piqa_labels.lst").write_text("one\n")
    with pytest.raises(ParameterError, match="piqa_labels.lst holds something else than numbers"):
        read_questions(tmp_path / "piqa.jsonl")


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "hellaswag.txt").write_text(SIX * 2)
    (tmp_path / "zorro.txt").write_text("no pig could stand on at least six days .\nno pig could stand .\n")
    wraps = Question("Roof: A man is on a roof. he", (" wraps.", " rips.", " holds.", " pulls."), 3)
    pig = Question("", ("no pig could stand .", "no pig could stand on at least six days ."), 0)
    assert read_questions(tmp_path) == [wraps, wraps, pig]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no questions"),
        ("one\ntwo\nthree\n", "3 lines; a multiple of 2"),
        ('{"goal": 1}\n', "keys .goal. are those of no known layout"),
        ('{"context": "a", "choices": ["b"], "answer": 0}', "question 1: a question has at least two choices"),
        ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "question 1: the answer is 2, of 2 choices"),
        ('{"context": "a", "choices": ["b", "c"]}', "it has no 'answer'"),
        ('{"context": "a", "choices": 5, "answer": 0}', "question 1"),
        ('{"context": "a",\n', "line 1 is not valid JSON"),
        ("[1, 2]", "question 1: it is no object"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_what_is_no_question_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ParameterError, match=message):
        read_questions(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"a\xff")
    with pytest.raises(ParameterError, match="not UTF-8"):
        read_questions(tmp_path / "bad.txt")


def test_an_unknown_layout(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("a\nb\n")
    with pytest.raises(ParameterError, match="expected auto, choices"):
        read_questions(tmp_path / "q.txt", "blimp")
    with pytest.raises(ParameterError, match="is no JSON"):
        read_questions(tmp_path / "q.txt", "piqa")
