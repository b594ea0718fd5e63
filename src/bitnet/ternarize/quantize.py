"""A float model into a ternary file: by one rule for all projections, or with tuned thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitnet import formats, models
from bitnet.backends.base import Ops
from bitnet.convert import write_checkpoint
from bitnet.convert.gguf import Embeddings, gguf_architecture
from bitnet.errors import BitNetError, ModelError, ParameterError
from bitnet.evaluate.perplexity import perplexity
from bitnet.formats import Checkpoint
from bitnet.models import Decoder, open_model
from bitnet.quant.threshold import Rule
from bitnet.ternarize.calibration import record
from bitnet.ternarize.checkpoint import (
    Choice,
    Projection,
    Statistics,
    Ternarized,
    float_weight,
    projections,
    stored_type,
)
from bitnet.ternarize.search import Found, Outputs, Trial, sweep
from bitnet.tokenizer import Tokenizer

Say = Callable[[str], None]
MOST_TOKENS = 1 << 15  # of a calibration text
LEAST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Options:
    """text: to measure perplexity on, and to tune on. ctx: tokens of a window of it. The others are the command's."""

    rule: Rule
    dtype: str = "auto"
    embeddings: Embeddings = "f16"
    skip: tuple[str, ...] = ()
    text: str = ""
    tune: bool = False
    ctx: int = 512


@dataclass(slots=True)
class Report:
    """before, after: perplexity of the source and of the file written, on `tokens` tokens; None without a text.

    rows: a projection each. found, trials: of the tuner, by our names.
    """

    dtype: str
    rule: Rule
    rows: list[tuple[Projection, Statistics | None, Choice | None]]
    before: float | None = None
    after: float | None = None
    tokens: int = 0
    found: dict[str, Found] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    kept: Trial | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "type": self.dtype,
            "rule": "tuned" if self.trials else str(self.rule),
            "group": self.rule.group,
            "perplexity": {"before": self.before, "after": finite(self.after), "tokens": self.tokens},
            "projections": [self._row(*row) for row in self.rows],
            "trials": [
                {"name": t.name, "sparsity": t.sparsity, "output_error": t.error, "perplexity": finite(t.perplexity)}
                for t in self.trials
            ],
            "kept": None if self.kept is None else self.kept.name,
        }

    def _row(self, projection: Projection, statistics: Statistics | None, choice: Choice | None) -> dict[str, Any]:
        found = self.found.get(projection.name)
        return {
            "name": projection.name,
            "shape": projection.shape,
            "state": projection.state,
            "alpha": choice.rule.alpha if choice is not None and choice.rule.name == "threshold" else None,
            **(asdict(statistics) if statistics is not None else {}),
            **({"tried": [asdict(point) for point in found.points]} if found is not None else {}),
        }


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def quantize(source: Checkpoint, out: Path, options: Options, ops: Ops, say: Say = lambda text: None) -> Report:
    """Write the GGUF file `out`: `source` with every float projection made ternary.

    Projections that are ternary already keep their codes. With a text, perplexity is measured before and after; with
    `tune` the first half of the text tunes, the second chooses between the tuned models and is what is measured on.
    Raises ParameterError before anything is read where the choices do not fit the model.
    """
    found = projections(source, options.skip)
    dtype = stored_type(found, options.rule.group, options.dtype)
    check_writable(source)
    rounded = [each for each in found if each.rounded]
    report = Report(dtype, options.rule, [])
    choices = {each.name: Choice(options.rule) for each in rounded}
    held: list[int] = []
    tokenizer = Tokenizer.from_checkpoint(source)
    if options.text:
        ids = tokenizer.encode(options.text)[:MOST_TOKENS]
        if len(ids) < LEAST_TOKENS:
            raise ParameterError(f"The calibration text has {len(ids)} tokens; at least {LEAST_TOKENS} are needed.")
        half = len(ids) // 2 if options.tune else 0
        held, report.tokens = ids[half:], len(ids) - half
        say("reading the calibration text")
        model = models.load(source, ops, head="full")
        ctx = min(options.ctx, model.config.max_position_embeddings)
        report.before = perplexity(model, tokenizer, held, ctx).value
        inputs = record(model, ids[:half], ctx) if options.tune else {}
        del model
        if options.tune and rounded:
            tuner = Tuner(source, {each.name: each.spelled for each in rounded}, dtype, ops, tokenizer, held, ctx)
            report.found, report.trials = sweep(
                list(choices), lambda name: tuner.outputs(name, inputs), tuner.perplexity, options.rule.group, say
            )
            report.kept = min(report.trials, key=lambda trial: trial.perplexity)
            choices = report.kept.choices
    say("writing")
    made = Ternarized(source, {each.spelled: choices[each.name] for each in rounded}, dtype)
    write_checkpoint(made, out, weights=dtype.lower(), embeddings=options.embeddings)  # type: ignore[arg-type]
    report.rows = [(each, made.statistics.get(each.spelled), choices.get(each.name)) for each in found]
    if held:
        say("measuring what was written")
        with formats.open(out) as checkpoint:
            report.after = measured(models.load(checkpoint, ops, head="full"), tokenizer, held, ctx)
    return report


def check_writable(source: Checkpoint) -> None:
    """UnsupportedError where no GGUF architecture is this model, before any work is done."""
    module, config, _ = open_model(source)
    gguf_architecture(module.__name__.rpartition(".")[-1], config, None, source)


def measured(model: Decoder, tokenizer: Tokenizer, ids: Sequence[int], ctx: int) -> float:
    """The perplexity, infinite where the model gives no numbers any more."""
    try:
        return perplexity(model, tokenizer, ids, ctx).value
    except (ModelError, ParameterError):
        raise
    except BitNetError:
        return math.inf


@dataclass(frozen=True, slots=True)
class Tuner:
    """What the search asks for. spelled: our names of projections -> the file's; ids: the held-out text."""

    source: Checkpoint
    spelled: dict[str, str]
    dtype: str
    ops: Ops
    tokenizer: Tokenizer
    ids: Sequence[int]
    ctx: int

    def outputs(self, name: str, inputs: dict[str, Any]) -> Outputs:
        return Outputs(float_weight(self.source, self.spelled[name]), inputs[name])

    def perplexity(self, choices: dict[str, Choice]) -> float:
        made = Ternarized(self.source, {self.spelled[name]: each for name, each in choices.items()}, self.dtype)
        return measured(models.load(made, self.ops, head="full"), self.tokenizer, self.ids, self.ctx)
