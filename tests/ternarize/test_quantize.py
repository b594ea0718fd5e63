"""A float model into a ternary file, with its perplexities and the tuner's choice."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from float_models import TEXT

from bitnet import backends, formats
from bitnet.errors import ParameterError, UnsupportedError
from bitnet.evaluate.perplexity import perplexity
from bitnet.quant.threshold import Rule
from bitnet.ternarize.quantize import Options, Report, quantize

BACKEND = "cpu" if tiny.usable_isas() else "reference"


def run(source: Path, out: Path, rule: Rule = Rule(), **options: Any) -> Report:
    with formats.open(source) as checkpoint:
        return quantize(checkpoint, out, Options(rule, ctx=32, **options), backends.make(BACKEND))


@pytest.fixture(scope="module")
def tuned(float_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("tuned") / "tuned.gguf"
    return run(float_gguf, out, Rule("threshold", 0.7, "row"), text=TEXT, tune=True), out


def test_the_tuner_has_less_output_error_than_every_plain_rule(tuned: tuple[Report, Path]) -> None:
    plain = [t.error for t in tuned[0].trials if t.factor is None]
    (own,) = [t.error for t in tuned[0].trials if t.factor == 1]
    assert len(plain) == 3 and own < min(plain)


def test_the_tuner_keeps_the_least_perplexity_on_held_out_text(tuned: tuple[Report, Path]) -> None:
    report, out = tuned
    assert report.kept is not None and report.kept.perplexity == min(t.perplexity for t in report.trials)
    ids = tiny.tokenizer().encode(TEXT)
    held = ids[len(ids) // 2 :]
    assert report.tokens == len(held)
    found = perplexity(tiny.load(out, BACKEND), tiny.tokenizer(), held, ctx=32)
    assert report.after == pytest.approx(found.value) == report.kept.perplexity


def test_perplexity_before_is_that_of_the_float_model(tuned: tuple[Report, Path], float_gguf: Path) -> None:
    ids = tiny.tokenizer().encode(TEXT)
    found = perplexity(tiny.load(float_gguf, BACKEND), tiny.tokenizer(), ids[len(ids) // 2 :], ctx=32)
    assert tuned[0].before == pytest.approx(found.value)


def test_the_report_as_json_holds_every_projection_and_trial(tuned: tuple[Report, Path]) -> None:
    found = json.loads(json.dumps(tuned[0].to_json()))
    assert len(found["projections"]) == 14 and len(found["trials"]) == 10
    assert all(len(row["tried"]) >= 19 and 0 < row["sparsity"] < 1 for row in found["projections"])
    assert found["perplexity"]["after"] == tuned[0].after


def test_the_picture_is_drawn(tuned: tuple[Report, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bitnet.ternarize.plot import draw

    for name in ("a.svg", "b.svg", "c.png"):
        draw(tuned[0], "float.gguf", tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text() and "<svg" in text
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_without_a_text_nothing_is_measured(float_gguf: Path, tmp_path: Path) -> None:
    report = run(float_gguf, tmp_path / "out.gguf", Rule("optimal"))
    assert (report.before, report.after, report.trials) == (None, None, [])
    assert all(statistics is not None for _, statistics, _ in report.rows)


def test_a_ternary_model_keeps_its_codes(tmp_path: Path) -> None:
    source = tiny.convert(tiny.Synthetic(tiny.VARIANTS["llama"]), tmp_path / "ternary.gguf")
    report = run(source, tmp_path / "out.gguf", Rule("threshold", 1.5))
    assert {projection.state for projection, _, _ in report.rows} == {"ternary"}
    with formats.open(source) as before, formats.open(tmp_path / "out.gguf") as after:
        for name in before.tensors():
            assert before.read(name).dequantize().tobytes() == after.read(name).dequantize().tobytes()


def test_what_is_skipped_stays_as_it_is(float_gguf: Path, tmp_path: Path) -> None:
    run(float_gguf, tmp_path / "out.gguf", skip=("layers.0.*",))
    with formats.open(tmp_path / "out.gguf") as checkpoint:
        types = {name: info.dtype for name, info in checkpoint.tensors().items()}
    assert (types["blk.0.ffn_up.weight"], types["blk.1.ffn_up.weight"]) == ("F16", "I2_S")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"dtype": "q4_k"}, "--type"), ({"text": "too short"}, "at least 64"), ({"skip": ("x",)}, "--skip x")],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    options: dict[str, Any], message: str, float_gguf: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=message):
        run(float_gguf, tmp_path / "out.gguf", **options)
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_gguf_architecture_is_refused_before_any_work(
    make: Callable[..., tiny.Synthetic], tmp_path: Path
) -> None:
    source = make({**tiny.BITNET, **tiny.WIDE, "hidden_act": "gelu_pytorch_tanh"})
    with pytest.raises(UnsupportedError, match="gelu"):
        quantize(source, tmp_path / "out.gguf", Options(Rule()), backends.make(BACKEND))


def test_a_model_that_gives_no_numbers_is_infinitely_bad(float_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnet.errors import BitNetError
    from bitnet.ternarize import quantize as module

    def broken(*_: Any) -> None:
        raise BitNetError("The model's logits are not finite.")

    monkeypatch.setattr(module, "perplexity", broken)
    assert module.measured(tiny.load(float_gguf), tiny.tokenizer(), [1], 32) == math.inf
