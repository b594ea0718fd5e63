"""Tasks of lm-evaluation-harness, on questions that lie beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QUESTIONS = [
    {"question": "The dog ran to the", "choices": [" end", " sea of stars", " x"], "answer": 0},
    {"question": "One and two are", "choices": [" three", " many", " the rain"], "answer": 1},
    {"question": "Once upon a time", "choices": [" there was", " and", " qq"], "answer": 2},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
{more}
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc}]
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity}]
"""
WRITING = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: ""
generation_kwargs: {until: ["e"], max_gen_toks: 12, temperature: 0}
metric_list: [{metric: exact_match}]
"""


TASKS = {"choosing": CHOICE, "rolling": ROLLING, "writing": WRITING}


def write_tasks(folder: Path) -> None:
    """TASKS into folder/tasks, and QUESTIONS into folder/questions.jsonl."""
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    (folder / "tasks").mkdir()
    for name, kind in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, data=data, more=kind))


def read_samples(folder: Path) -> dict[str, list[Any]]:
    """By task: what the harness wrote of each question, in their order."""
    found = {}
    for name in TASKS:
        (path,) = folder.rglob(f"samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[name] = sorted(lines, key=lambda line: int(line["doc_id"]))
    return found


def scores_of(samples: dict[str, list[Any]]) -> tuple[list[float], list[float], list[str]]:
    """Of the choices, of the whole texts, and what was written."""
    choosing = [float(each[0][0]) for sample in samples["choosing"] for each in sample["resps"]]
    whole = [sample["resps"][0] for sample in samples["rolling"]]
    rolling = [float(each[0] if isinstance(each, list) else each) for each in whole]
    return choosing, rolling, [sample["resps"][0][0] for sample in samples["writing"]]
