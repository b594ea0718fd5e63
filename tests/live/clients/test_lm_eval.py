"""lm-eval's local-completions, end to end: its scores are those that the engine gives without a server.

It sends tokens, and puts no begin-of-text token before a question.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import serving
from live.clients.conftest import run_in

from bitnet import BitNet
from bitnet.engine import SamplingParams

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


@pytest.fixture(scope="module")
def samples(client: serving.Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """By task: what lm-eval made of each question."""
    folder = tmp_path_factory.mktemp("lm_eval")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(each) + "\n" for each in QUESTIONS))
    (folder / "tasks").mkdir()
    for name, kind in TASKS.items():
        (folder / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, data=data, more=kind))
    server = f"base_url={str(client.base_url).rstrip('/')}/v1/completions,model=tiny,auth_token=sesame"
    how = "tokenizer_backend=remote,num_concurrent=2,max_length=512"
    done = run_in(
        folder, "lm_eval", "lm_eval", "run", "--model", "local-completions", "--model_args", f"{server},{how}",
        "--tasks", ",".join(TASKS), "--include_path", folder / "tasks", "--output_path", folder / "out",
        "--log_samples", OPENAI_API_KEY="sesame",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: sorted(read_samples(folder / "out", name), key=lambda line: int(line["doc_id"])) for name in TASKS}


def read_samples(folder: Path, name: str) -> list[Any]:
    (found,) = folder.rglob(f"samples_{name}_*.jsonl")
    return [json.loads(line) for line in found.read_text().splitlines()]


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Any:
    with BitNet(tiny_gguf, backend=serving.BACKEND, ctx_size=512) as opened:
        yield opened


def likelihood(model: BitNet, before: list[int], text: str) -> float:
    """Of a text after these tokens, in logarithms."""
    ids = model.tokenizer.encode(text, False)
    sequence = model.llm.add_request(before + ids, SamplingParams(max_tokens=0), score_from=0)
    for _ in model.llm.run([sequence]):
        pass
    return math.fsum(each.logprob for each in sequence.prompt_logprobs[-len(ids) :])


def written(model: BitNet, ids: list[int]) -> str:
    sequence = model.llm.add_request(ids, SamplingParams(max_tokens=12, temperature=0, stop=("e",)))
    return "".join(output.text for output in model.llm.run([sequence]))


def test_choices_are_scored_as_the_engine_scores_them(samples: dict[str, list[Any]], model: BitNet) -> None:
    for sample, asked in zip(samples["choosing"], QUESTIONS, strict=True):
        scores = [float(each[0][0]) for each in sample["resps"]]
        expected = [
            likelihood(model, model.tokenizer.encode(asked["question"], False), choice) for choice in asked["choices"]
        ]
        assert scores == pytest.approx(expected, abs=1e-3)
        assert sample["acc"] == float(expected.index(max(expected)) == asked["answer"])


def test_whole_texts_are_scored_too(samples: dict[str, list[Any]], model: BitNet) -> None:
    for sample, asked in zip(samples["rolling"], QUESTIONS, strict=True):
        (score,) = sample["resps"][0] if isinstance(sample["resps"][0], list) else (sample["resps"][0],)
        expected = likelihood(model, [model.tokenizer.bos_id or 0], asked["question"])
        assert float(score) == pytest.approx(expected, abs=1e-3)


def test_what_is_written_ends_where_it_should(samples: dict[str, list[Any]], model: BitNet) -> None:
    for sample, asked in zip(samples["writing"], QUESTIONS, strict=True):
        assert sample["resps"][0][0] == written(model, model.tokenizer.encode(asked["question"], False))
