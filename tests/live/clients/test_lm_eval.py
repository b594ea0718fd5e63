"""lm-eval, through a server and with the engine in its own process: its scores are those that the engine gives alone.

Its local-completions sends tokens, and puts no begin-of-text token before a question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import serving
from live.clients.conftest import Ran, run_in
from live.clients.harness_tasks import QUESTIONS, TASKS, read_samples, scores_of, write_tasks

from bitnet import BitNet
from bitnet.engine import SamplingParams
from bitnet.evaluate.choice import accuracy
from bitnet.evaluate.likelihood import Continuation, likelihoods
from bitnet.evaluate.questions import Question


@pytest.fixture(scope="module")
def samples(client: serving.Client, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """By task: what lm-eval made of each question."""
    folder = tmp_path_factory.mktemp("lm_eval")
    write_tasks(folder)
    server = f"base_url={str(client.base_url).rstrip('/')}/v1/completions,model=tiny,auth_token=sesame"
    how = "tokenizer_backend=remote,num_concurrent=2,max_length=512"
    done = run_in(
        folder, "lm_eval", "lm_eval", "run", "--model", "local-completions", "--model_args", f"{server},{how}",
        "--tasks", ",".join(TASKS), "--include_path", folder / "tasks", "--output_path", folder / "out",
        "--log_samples", OPENAI_API_KEY="sesame",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return read_samples(folder / "out")


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


@pytest.fixture
def harness(ran: Callable[..., Ran], installed: str, tmp_path: Path) -> Callable[..., Any]:
    """The harness with the plugin, to its end: what it wrote of TASKS."""
    write_tasks(tmp_path)

    def run(arguments: str, *more: object) -> Any:
        done = ran(
            "lm_eval", "python", "-m", "bitnet.plugins.lm_eval", "run", "--model", "bitnet", "--model_args", arguments,
            "--tasks", ",".join(TASKS), "--include_path", tmp_path / "tasks", "--output_path", tmp_path / "out",
            "--log_samples", *more, PYTHONPATH=installed,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return read_samples(tmp_path / "out")

    return run


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
    expected = [likelihood(model, [model.tokenizer.bos_id or 0], asked["question"]) for asked in QUESTIONS]
    assert scores_of(samples)[1] == pytest.approx(expected, abs=1e-3)


def test_what_is_written_ends_where_it_should(samples: dict[str, list[Any]], model: BitNet) -> None:
    for sample, asked in zip(samples["writing"], QUESTIONS, strict=True):
        assert sample["resps"][0][0] == written(model, model.tokenizer.encode(asked["question"], False))


def test_in_process_as_through_the_server(
    harness: Callable[..., Any], samples: dict[str, list[Any]], tiny_gguf: Path
) -> None:
    own = harness(f"pretrained={tiny_gguf},backend={serving.BACKEND},ctx_size=512,add_bos_token=False")
    for mine, theirs in zip(scores_of(own), scores_of(samples), strict=True):
        assert mine == (theirs if isinstance(mine[0], str) else pytest.approx(theirs, abs=1e-6))


def test_in_process_as_bitnet_eval_has_it(
    harness: Callable[..., Any], ran: Callable[..., Ran], installed: str, model: BitNet, tmp_path: Path
) -> None:
    """With a begin-of-text token, as the model wants it; many at a time; and `bitnet eval` with the same tasks."""
    own = harness(f"pretrained={model.path},backend={serving.BACKEND},ctx_size=512", "--batch_size", "auto")
    texts = [Continuation.of(model.tokenizer, q["question"], choice) for q in QUESTIONS for choice in q["choices"]]
    choosing, _, writing = scores_of(own)
    assert choosing == [each.logprob for each in likelihoods(model.llm, texts)]
    assert writing == [written(model, model.tokenize(q["question"])) for q in QUESTIONS]
    questions = [Question(q["question"], tuple(q["choices"]), q["answer"]) for q in QUESTIONS]
    expected = accuracy(model.llm, model.tokenizer, questions).acc
    assert sum(sample["acc"] for sample in own["choosing"]) / len(QUESTIONS) == expected
    done = ran(
        "lm_eval", "python", "-m", "bitnet", "eval", tmp_path / "questions.jsonl", "--lm-eval", "choosing,rolling",
        "--include-path", tmp_path / "tasks", "--model", model.path, "--backend", serving.BACKEND, "-c", 512, "--json",
        PYTHONPATH=installed,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tasks"][0]["acc"] == found["lm_eval"]["results"]["choosing"]["acc,none"] == expected
    assert found["lm_eval"]["results"]["rolling"]["byte_perplexity,none"] > 1


def test_in_process_conversations(harness: Callable[..., Any], model: BitNet) -> None:
    own = harness(f"pretrained={model.path},backend={serving.BACKEND},ctx_size=512", "--apply_chat_template")
    asked = [q["question"] for q in QUESTIONS]
    assert scores_of(own)[2] == [model.chat(text, 12, temperature=0, stop="e") for text in asked]


def test_a_task_that_is_not_there(ran: Callable[..., Ran], installed: str) -> None:
    done = ran("lm_eval", "python", "-m", "bitnet", "eval", "--lm-eval", "hellaswga", PYTHONPATH=installed)
    assert done.returncode == 2 and "no task hellaswga" in done.stderr and "Traceback" not in done.stderr


def test_the_model_by_itself(told: Callable[..., Any]) -> None:
    """In the harness's environment, where the classes can be called."""
    found = told("lm_eval", "with_lm_eval.py")
    assert found["entry point"] == "bitnet.plugins.lm_eval:BitNetLM" and not found["torch"]
    assert found["one at a time"] == found["many"] and found["shared"] >= 2 * 32
    assert found["cut"] == pytest.approx(found["cut by hand"], abs=1e-4)
    assert "the context holds 128" in found["too long"]
    assert found["partial"] == {"loglikelihood": 4, "loglikelihood_rolling": 1, "generate_until": 2}
    assert found["rolling"] == pytest.approx(found["rolling by hand"], abs=1e-4)
    assert found["begun"].endswith("So it")
    assert found["sampling"] == [[0.0, 7, ["a", "b"]], [1.0, 256, []], [0.5, 256, ["c"]]]
    assert "beam" in found["beams"] and "typical_p" in found["unknown"] and "max_gen_toks" in found["no room"]
