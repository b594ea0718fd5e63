"""What tools/story_trial.py measures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from bitnet import BitNet
from bitnet.train.conversations import is_held_out

spec = importlib.util.spec_from_file_location("story_trial", Path(__file__).parents[2] / "tools" / "story_trial.py")
assert spec and spec.loader
story_trial = importlib.util.module_from_spec(spec)
spec.loader.exec_module(story_trial)


def test_the_pairs_asked_for_were_held_out_and_are_the_same_every_time() -> None:
    pairs = list(story_trial.pairs(100))
    assert len(set(pairs)) == 100 and pairs == list(story_trial.pairs(100))
    assert all(is_held_out(*pair) for pair in pairs)


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [("Two foxes ran.", "fox", True), ("A ballet.", "ball", False), ("The Ball!", "ball", True), ("", "ball", False)],
)
def test_a_word_counts_in_either_number(text: str, word: str, expected: bool) -> None:
    assert story_trial.names(text, word) == expected


def test_models_are_compared_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story_trial, "REQUESTS", ("Tell me a story.", "Once upon a time"))
    monkeypatch.setattr(story_trial, "PLAIN", 1)
    with BitNet(threads=1) as model:
        path = Path(model.path)
        (tmp_path / "held_out.txt").write_text(f"One day, a dog ran.{story_trial.SEPARATOR}{'a b c ' * 600}")
        found = story_trial.bits(model, tmp_path / "held_out.txt")
        topics = story_trial.topics(model, 2)
    assert found["stories"] == 1 and 0 < found["bits_per_character"] < 5
    assert topics["n"] == 2 and 0 <= topics["both"] <= topics["words"] <= 1
    story_trial.samples(type("Given", (), {"model": [path, path], "threads": 1, "out": tmp_path, "seed": 5})())
    text = (tmp_path / "samples.txt").read_text()
    assert text.count("## ") == 4 and str(path) not in text and (tmp_path / "key.json").exists()
