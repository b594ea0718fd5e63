"""`bitnet train` and `bitnet export`: from a YAML file to a model that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

torch = pytest.importorskip("torch", reason="training needs the train extra: pip install bitnet[train]")

from bitnet.cli.main import main
from bitnet.formats import open as open_checkpoint
from bitnet.tokenizer import Tokenizer
from bitnet.train.export import trained
from bitnet.train.launch import opened
from bitnet.train.quantizers import FLOAT

SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}  # fmt: skip
CHAT = [{"role": "user", "content": "Who ran?"}, {"role": "assistant", "content": "The fox ran home."}]


def bitnet(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, conversations, and a float model that was trained on them for a moment."""
    folder = tmp_path_factory.mktemp("train")
    stories = [f"Day {i}: the fox ran to the {place}." for i in range(60) for place in ("den", "inn", "sea")]
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": CHAT}) + "\n" for _ in range(40)))
    config: dict[str, Any] = {
        "task": "pretrain",
        "model": {"config": {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": True, **SHAPE}},
        "recipe": {"mixed": {".*": 16}},
        "tokenizer": {"vocabulary": 320},
        "data": {
            "train": [{"path": f"{folder}/stories.txt"}, {"path": f"{folder}/chat.jsonl"}],
            "held_out": [{"path": f"{folder}/chat.jsonl"}],
            "length": 48,
        },
        "training": {"steps": 6, "log_every": 1},
    }
    (folder / "float.yaml").write_text(yaml.safe_dump(config))
    assert bitnet("train", folder / "float.yaml", "--out", folder / "float") == 0
    assert bitnet("export", folder / "float", "--folder", folder / "teacher", "--embeddings", "f32") == 0
    return folder


def losses(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_float_model_is_trained_and_exported_as_one(folder: Path) -> None:
    found = losses(folder / "float")
    assert [line["step"] for line in found if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert found[-1]["held_out"] < found[0]["loss"]
    model = tiny.load(folder / "teacher", "cpu")
    tokens = Tokenizer.from_folder(folder / "teacher").encode("Day 3: the fox")
    with torch.no_grad():
        expected = trained(folder / "float")(torch.tensor([tokens]))[0].numpy()
    tiny.assert_same_logits(tiny.logits(model, tokens), expected, 1e-4, "float")


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("finetune", ["model.path={}/float", "recipe.rule=threshold", "schedule.blend=0.5"]),
        ("distill", ["teacher.path={}/teacher", "model.sub_norms=true", "training.rows_at_once=4"]),
    ],
)
def test_a_float_model_becomes_ternary(task: str, settings: list[str], folder: Path, tmp_path: Path) -> None:
    given = [f"--set={setting.format(folder)}" for setting in settings]
    clean = [f"--set=task={task}", "--set=model.config={}", "--set=recipe.mixed={}", "--set=tokenizer.vocabulary=0"]
    assert bitnet("train", folder / "float.yaml", "--out", tmp_path / "run", *clean, *given) == 0
    assert bitnet("export", tmp_path / "run", "--gguf", tmp_path / "a.gguf", "--embeddings", "f32") == 0
    with open_checkpoint(tmp_path / "a.gguf") as opened:
        assert opened.architecture == ("bitnet" if task == "distill" else "llama")
        assert {info.dtype for name, info in opened.tensors().items() if "ffn_down" in name} == {"I2_S"}
        tokens = Tokenizer.from_checkpoint(opened).encode("Day 3: the fox")
    with torch.no_grad():
        expected = trained(tmp_path / "run")(torch.tensor([tokens]))[0].numpy()
    tiny.assert_same_logits(tiny.logits(tiny.load(tmp_path / "a.gguf", "cpu"), tokens), expected, 2e-4, task)


def test_a_run_and_what_was_exported_of_it_are_the_same_beginning(folder: Path) -> None:
    run, file = (opened(folder / name, FLOAT, False, dtype=torch.float32) for name in ("float", "teacher"))
    assert run.shapes == file.shapes
    assert all(torch.equal(run.master(name), file.master(name)) for name in run.shapes)


def test_a_folder_that_holds_another_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("train", folder / "float.yaml", "--out", folder / "float", "--set", "optimizer.muon=0.5")
    assert bitnet(*arguments) == 2
    assert "holds a run with another optimizer" in capsys.readouterr().err


def test_a_run_that_is_over_stays_as_it_is(folder: Path) -> None:
    before = losses(folder / "float")
    assert bitnet("train", folder / "float.yaml", "--out", folder / "float") == 0
    assert losses(folder / "float") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.yaml"], "no file none.yaml"),
        (["export", "none"], "Nothing to write"),
        (["export", "none", "--gguf", "a.gguf"], "holds no checkpoint"),
    ],
)
def test_what_is_not_there_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bitnet(*arguments) in (2, 3)
    assert message in capsys.readouterr().err


def test_a_run_that_failed_before_training_is_begun_again(folder: Path, tmp_path: Path) -> None:
    arguments = ("train", folder / "float.yaml", "--out", tmp_path / "run", "--set", "training.steps=1")
    assert bitnet(*arguments, "--set", f"data.train=[{{path: {folder}/nothing.txt}}]") == 2
    assert bitnet(*arguments, "--set", "data.length=16", "--set", "data.held_out=[]") == 0
    assert bitnet(*arguments) == 2  # now it holds one with other data


def test_a_configuration_of_something_else_stays(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("theme: dark\n")
    assert bitnet("train", folder / "float.yaml", "--out", tmp_path) == 2
    assert (tmp_path / "config.yaml").read_text() == "theme: dark\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.config.num_key_value_head=1", "Did you mean 'num_key_value_heads'"),
        ("recipe.mixed={q_projj: 8}", "'q_projj' is found in no weight's name"),
        ("recipe={group: 32}", "No model file holds scales for groups of 32"),
        ("recipe={group: row, mixed: {q_proj: 16}}", "k_proj has rows of 96; files with a scale for each row take"),
        ("training.seed=-1", "seed is -1; expected 0 or more"),
        ("training.rows_at_once=-1", "rows_at_once is -1"),
        ("optimizer.adam=-0.1", "adam is -0.1; expected a number that is not negative"),
        ("optimizer.beta1=1.0", "beta1 is 1.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    setting: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = yaml.safe_load((folder / "float.yaml").read_text())
    values["model"]["config"].pop("num_key_value_heads")
    if "row" in setting:
        values["model"]["config"] |= {"hidden_size": 96, "head_dim": 24}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert bitnet("train", tmp_path / "run.yaml", "--out", tmp_path / "run", "--set", setting) == 2
    assert message in capsys.readouterr().err
