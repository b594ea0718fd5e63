"""The files of examples/ are complete: each begins a run and takes two steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from bitnet.cli.main import main
from bitnet.train.config import read

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAT = [{"role": "user", "content": "Who ran?"}, {"role": "assistant", "content": "The fox ran home."}]
# Small enough for a test, and without the limit in minutes.
BRIEF = ["training.steps=2", "training.minutes=null", "training.log_every=1", "data.length=64", "training.rows=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples are run: with the texts that they name."""
    folder = tmp_path_factory.mktemp("examples")
    texts = folder / "runs" / "texts"
    texts.mkdir(parents=True)
    stories = [f"Day {i}: the fox ran to the {place}." for i in range(60) for place in ("den", "inn", "sea")]
    for name in ("stories.txt", "held_out.txt"):
        (texts / name).write_text("\n<|endoftext|>\n".join(stories))
    (texts / "chat.jsonl").write_text("".join(json.dumps({"messages": CHAT}) + "\n" for _ in range(40)))
    return folder


def start(path: Path, *settings: str) -> None:
    given = [argument for setting in (*BRIEF, *settings) for argument in ("--set", setting)]
    with pytest.raises(SystemExit) as left:
        main(["train", str(path), *given])
    assert not left.value.code


def test_every_example_takes_two_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order in which they build on each other: the float model first, as finetune.yaml says."""
    monkeypatch.chdir(folder)
    small = ("tokenizer.vocabulary=320", "training.rows_at_once=2")
    start(EXAMPLES / "pretrain.yaml", *small, 'recipe.mixed={".*": 16}', "out=runs/float")
    found = sorted(EXAMPLES.glob("*.yaml"))
    assert found
    for path in found:
        start(path, *(small if path.stem == "pretrain" else ()))
        lines = (read(path).out / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines if "loss" in line] == [1, 2]
