"""A configuration says what it means or is refused, naming the key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from bitnet.errors import ParameterError
from bitnet.train import config

TEXT = """
task: pretrain
out: runs/a
model: {config: {model_type: llama}}
recipe: {group: 64, mixed: {down_proj: 8}}
data:
  train: [{path: a.txt}, {path: b.jsonl, messages: turns}]
training: {steps: 10, seed: 3}
"""


def read(tmp_path: Path, text: str = TEXT, *settings: str) -> config.RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return config.read(path, settings)


def test_sections_become_fields_of_their_types(tmp_path: Path) -> None:
    made = read(tmp_path)
    assert made.out == Path("runs/a") and made.recipe.group == 64 and made.recipe.mixed == {"down_proj": 8.0}
    assert [source.path for source in made.data.train] == [Path("a.txt"), Path("b.jsonl")]
    assert (made.data.train[1].messages, made.training.minutes, made.optimizer.muon) == ("turns", None, 0.02)


def test_a_setting_takes_the_place_of_what_the_file_says(tmp_path: Path) -> None:
    made = read(tmp_path, TEXT, "training.steps=20", "optimizer.adam=0.5", "recipe.group=row", "out=x")
    assert (made.training.steps, made.optimizer.adam, made.recipe.group, made.out) == (20, 0.5, "row", Path("x"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.stepz=1", "unknown key 'stepz'.\nDid you mean 'steps'"),
        ("recipes.rule=absmean", "unknown key 'recipes'.\nDid you mean 'recipe'"),
        ("training.steps=many", "training: steps is 'many'; expected a whole number"),
        ("training.steps=true", "expected a whole number"),
        ("optimizer.adam=1e-3", "expected a number.\nYAML wants a point and a sign: write 0.001"),
        ("recipe.rule=best", "recipe: rule is 'best'; expected absmean or threshold or optimal"),
        ("recipe.group=column", "recipe: group is 'column'"),
        ("data.train=a.txt", "expected a list"),
        ("data.train=[]", "nothing to train on"),
        ("task=sleep", "task is 'sleep'; expected pretrain or finetune or distill"),
        ("task=finetune", "needs model.path"),
        ("task=distill", "needs teacher.path"),
        ("model.path=x", "give one of them"),
        ("training", "expected one such as training.steps=100"),
        ("out.deep=1", "out is not a section"),
        ("training.steps=[1", "'[1' is no YAML"),
        ("training.threads=-2", "threads is -2; expected 0 or more"),
        ("data.length=1", "a row has at least 2 tokens"),
        ("data.tokens=0", "data.tokens is 0"),
        ("tokenizer.vocabulary=10", "the special tokens alone are 259"),
    ],
)
def test_what_is_wrong_is_named(setting: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError) as error:
        read(tmp_path, TEXT, setting)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is no YAML"), ("- 1", "holds no keys"), ("out: x", "lacks 'task'")]
)
def test_a_file_that_is_no_configuration_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=message):
        read(tmp_path, text)


def test_sections_have_the_fields_and_defaults_of_what_they_configure() -> None:
    pytest.importorskip("torch", reason="what they configure needs the train extra")
    from bitnet.train.distill import Weights
    from bitnet.train.optimizer import Rates
    from bitnet.train.schedule import Schedule
    from bitnet.train.trainer import Plan

    def of(kind: Any, without: tuple[str, ...]) -> dict[str, Any]:
        return {f.name: f.default for f in fields(kind) if f.name not in without}

    assert of(config.OptimizerSection, ()) == of(Rates, ())
    assert of(config.ScheduleSection, ()) == of(Schedule, ("end",))
    assert of(config.TrainingSection, ("threads",)) == of(Plan, ("out",))
    assert of(config.TeacherSection, ("path",)) == of(Weights, ())
    for kind, section in ((Rates, config.OptimizerSection), (Schedule, config.ScheduleSection)):
        assert get_args(get_type_hints(kind)["kind"]) == get_args(get_type_hints(section)["kind"])
