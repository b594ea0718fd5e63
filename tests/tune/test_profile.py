"""A profile is found by the runs it was made for, and by no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

_core = pytest.importorskip("bitnet._core")

import bitnet.formats
from bitnet import BitNet, backends, models
from bitnet.backends.cpu import packings
from bitnet.backends.packing import BITS, WEIGHTS
from bitnet.errors import BitNetError, ResourceError
from bitnet.models.synthetic import SyntheticCheckpoint
from bitnet.tune import Options, Profile, find, profile, tuning
from bitnet.tune.meter import ModelMeter, repacked
from bitnet.tune.profile import machine_fingerprint, model_fingerprint, save

TUNED = Profile(Options(threads=1, head="full", chunk=64), "machine", "model", "today", {"before": {}})
TINY = SyntheticCheckpoint("tiny")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    before = _core.threads()
    yield
    _core.set_threads(before)


def test_what_was_saved_is_found_again() -> None:
    assert find(TINY).profile is None
    path = save(TUNED, TINY)
    assert find(TINY).profile == TUNED and find(TINY).path == path
    later = Profile(Options(threads=2))
    save(later, TINY)
    assert find(TINY).options == Options(threads=2)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_file_is_json_that_says_what_it_is_for(home: Path) -> None:
    found = json.loads(save(TUNED, TINY).read_text())
    assert found["options"] == {"threads": 1, "head": "full", "chunk": 64}
    assert (found["version"], found["bitnet"], found["model"]) == (1, bitnet.__version__, "model")


def test_another_shape_type_or_seed() -> None:
    save(TUNED, TINY)
    assert find(SyntheticCheckpoint("tiny", num_hidden_layers=3)).profile is None
    assert find(SyntheticCheckpoint("100M")).profile is None
    assert find(SyntheticCheckpoint("tiny", seed=1)).profile == TUNED  # the same shape is as fast


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine_fingerprint()
    save(TUNED, TINY)
    monkeypatch.setattr("bitnet.machine.processor.model_name", lambda root=None: "another CPU")
    assert machine_fingerprint() != here and find(TINY).profile is None


@pytest.mark.parametrize("isa", _core.isas()[1:])
def test_another_instruction_set(isa: str) -> None:
    before = _core.isa()
    save(TUNED, TINY)
    try:
        _core.set_isa(isa)
        assert find(TINY).profile is None
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"version": 2, "bitnet": "VERSION", "options": {}}',
        '{"version": 1, "bitnet": "0.0.1", "options": {}}',
        '{"version": 1, "bitnet": "VERSION"}',
        '{"version": 1, "bitnet": "VERSION", "options": []}',
        '{"version": 1, "bitnet": "VERSION", "options": {"temperature": 2}}',
        '{"version": 1, "bitnet": "VERSION", "options": {"threads": "2"}}',
        '{"version": 1, "bitnet": "VERSION", "options": {"threads": true}}',
        '{"version": 1, "bitnet": "VERSION", "options": {"threads": 100000}}',
        '{"version": 1, "bitnet": "VERSION", "options": {"head": "half"}}',
        '{"version": 1, "bitnet": "VERSION", "options": {"head": []}}',
        '{"version": 1, "bitnet": "VERSION", "options": {"weights": "3bit"}}',
        '{"version": 1, "bitnet": "VERSION", "options": {"weights": []}}',
        '{"version": 1, "bitnet": "VERSION", "options": {"weights": "2bit", "kernel": "tl1"}}',
        '{"version": 1, "bitnet": "VERSION", "options": {"chunk": 0}}',
        "[" * 100000,
        '{"a": "' + "b" * (1 << 20) + '"}',
        "\x00\x01",
    ],
)
def test_a_damaged_or_foreign_profile_is_left_out_with_a_note(text: str) -> None:
    path = save(TUNED, TINY)
    path.write_text(text.replace("VERSION", bitnet.__version__))
    found = find(TINY)
    assert found.profile is None and found.options == Options()
    assert str(path) in found.note and "bitnet tune" in found.note


def test_a_profile_that_cannot_be_read_is_none(home: Path) -> None:
    path = save(TUNED, TINY)
    path.unlink()
    path.mkdir()
    assert find(TINY).profile is None


def test_a_profile_that_cannot_be_written_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "bitnet").write_text("a file")
    with pytest.raises(ResourceError, match="cannot be made"):
        save(TUNED, TINY)

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ResourceError, match="home"):
        save(TUNED, TINY)
    assert find(TINY).path is None


@pytest.mark.parametrize("value, used", [("1", False), ("yes", False), ("0", True), ("", True)])
def test_a_variable_turns_profiles_off(monkeypatch: pytest.MonkeyPatch, value: str, used: bool) -> None:
    save(TUNED, TINY)
    monkeypatch.setenv("BITNET_NO_PROFILE", value)
    assert (find(TINY).profile is not None) is used


def saved_for(path: Path, options: Options) -> None:
    with bitnet.formats.open(path) as checkpoint:
        save(Profile(options), checkpoint)


def test_a_model_uses_its_profile_where_nothing_else_was_asked_for(tiny_gguf: Path) -> None:
    saved_for(tiny_gguf, Options(threads=3, head="full", chunk=64))
    with BitNet(tiny_gguf) as model:
        assert (_core.threads(), model.llm.scheduler.chunk, model.llm.runner.head) == (3, 64, "full")
        assert model.tuned
    with BitNet(tiny_gguf, threads=2, chunk=512, head="screen") as model:
        assert (_core.threads(), model.llm.scheduler.chunk, model.llm.runner.head) == (2, 512, "screen")
        assert not model.tuned
    saved_for(tiny_gguf, Options(weights="1.6bit"))
    for options, packing in (({}, "1.6bit"), ({"kernel": "tl1"}, "tl1"), ({"weights": "2bit"}, "2bit")):
        with BitNet(tiny_gguf, **options) as model:
            assert packings(model.llm.model.weights.values()) == packing and model.tuned is (not options)
    with BitNet(tiny_gguf, profile=False) as model:
        assert (_core.threads(), model.llm.scheduler.chunk) == (_core.default_threads(), 512)
        assert not model.tuned and model.profile.path is None


@pytest.mark.parametrize(
    "options", [{"threads": 3, "head": "screen", "chunk": 3}, {"weights": "1.6bit"}, {"kernel": "tl1"}]
)
def test_a_profile_changes_no_token(tiny_gguf: Path, options: dict[str, Any]) -> None:
    with BitNet(tiny_gguf, profile=False) as model:
        expected = model.generate("some words to go on from", 40, seed=1)
    saved_for(tiny_gguf, Options(**options))
    with BitNet(tiny_gguf) as model:
        assert model.tuned and model.generate("some words to go on from", 40, seed=1) == expected


def test_a_model_that_cannot_be_opened_has_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(checkpoint: object) -> None:
        raise BitNetError("unknown")

    monkeypatch.setattr(profile, "open_model", refuse)
    assert find(TINY).path is None


def test_tuning_gives_a_profile_that_can_be_kept_and_leaves_the_threads_alone() -> None:
    _core.set_threads(1)
    found = tuning.tune(TINY, 0.2)
    assert _core.threads() == 1
    save(found.profile, TINY)
    again = find(TINY).profile
    assert again == found.profile and again.options == found.outcome.options
    assert {trial.name for trial in found.trials} == {"threads", "weights", "chunk"}
    assert found.outcome.before.decode > 0 and found.outcome.before.prompt > 0


def test_options_that_change_the_logits_are_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = iter(f"{i}" for i in range(1000))
    monkeypatch.setattr("bitnet.bench.speed.logits_hash", lambda logits: next(hashes))
    with pytest.raises(BitNetError, match="changes the logits"):
        tuning.tune(TINY, 0.1)


@pytest.mark.parametrize("packing", BITS)
def test_a_repacked_model_shares_all_but_its_ternary_weights_and_gives_the_same_logits(packing: str) -> None:
    model = models.load(TINY, backends.make("cpu"))
    other = repacked(model, packing)
    assert packings(other.weights.values()) == packing
    for name, weight in model.weights.items():
        assert (other.weights[name] is weight) == (not isinstance(weight, _core.TernaryWeight)), name
    meter = ModelMeter(model)
    weights, kernel = (packing, "auto") if packing in WEIGHTS else ("auto", packing)
    meter(Options(weights=weights, kernel=kernel))  # compares the logits


def test_a_sample_fits_into_a_short_context() -> None:
    short = SyntheticCheckpoint("tiny", max_position_embeddings=20)
    meter = ModelMeter(models.load(short, backends.make("cpu")))
    assert meter(Options(chunk=8)).prompt > 0
    assert model_fingerprint(short) != model_fingerprint(TINY)
