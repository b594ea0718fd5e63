"""What a training run is to do, as a YAML file says it: every key is a field here, and no other is taken."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from bitnet.errors import ParameterError
from bitnet.quant.threshold import Group, Name
from bitnet.train.data import Source
from bitnet.train.vocabulary import SMALLEST


@dataclass(frozen=True)
class ModelSection:
    """path: a model file, or a run's folder, to go on from. config: the entries of a config.json, to begin anew.
    sub_norms: see with_sub_norms. checkpointing: keep less for the backward pass, and compute it again."""

    path: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)
    sub_norms: bool = False
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    checkpointing: bool = False


@dataclass(frozen=True)
class RecipeSection:
    """See quantizers.Recipe and quant.threshold.Rule. mixed {".*": 16} leaves everything in float."""

    rule: Name = "absmean"
    alpha: float = 0.7
    group: Group = "tensor"
    activations: int = 8
    trainable_scale: bool = False
    mixed: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherSection:
    """path: the teacher: a model file, or the folder of a run. The rest: see distill.Weights."""

    path: Path | None = None
    logits: float = 10.0
    attention: float = 1.0
    temperature: float = 5.0
    layer: int = -1
    heads: int = 0


@dataclass(frozen=True)
class TokenizerSection:
    """path: a folder or GGUF file that has one; absent: the model's own. vocabulary: train one of so many tokens on the
    first `documents` documents."""

    path: Path | None = None
    vocabulary: int = 0
    documents: int = 20_000

    def __post_init__(self) -> None:
        if self.vocabulary and self.vocabulary < SMALLEST:
            raise ParameterError(
                f"tokenizer.vocabulary is {self.vocabulary}; the bytes and the special tokens alone are {SMALLEST}.",
                f"Give {SMALLEST} or more; a few thousand are usual for a small model.",
            )


@dataclass(frozen=True)
class DataSection:
    """length: tokens of a row. tokens: at most so many of the sources."""

    train: tuple[Source, ...] = ()
    held_out: tuple[Source, ...] = ()
    length: int = 512
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ParameterError(f"data.length is {self.length}; a row has at least 2 tokens.")
        if self.tokens is not None and self.tokens < 1:
            raise ParameterError(f"data.tokens is {self.tokens}; expected a positive number.")


@dataclass(frozen=True)
class OptimizerSection:
    """See optimizer.Rates."""

    kind: Literal["muon", "adamw"] = "muon"
    muon: float = 0.02
    adam: float = 3e-3
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0


@dataclass(frozen=True)
class ScheduleSection:
    """See schedule.Schedule."""

    kind: Literal["trapezoid", "cosine", "linear", "constant", "two-stage"] = "trapezoid"
    rise: float = 0.015
    fall: float = 0.5
    blend: float = 0.0


@dataclass(frozen=True)
class TrainingSection:
    """See trainer.Plan. threads: of a process; 0: as many as it may use."""

    steps: int | None = None
    minutes: float | None = None
    rows: int = 8
    rows_at_once: int = 0
    seed: int = 0
    compile: bool = False
    save_every: float = 300.0
    keep: int = 2
    evaluate_every: float = 600.0
    log_every: int = 10
    patience: int = 10
    tensorboard: bool = False
    shard: bool = False
    threads: int = 0

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ParameterError(f"training.threads is {self.threads}; expected 0 or more.")


@dataclass(frozen=True)
class RunConfig:
    task: Literal["pretrain", "finetune", "distill"]
    out: Path
    model: ModelSection = ModelSection()
    recipe: RecipeSection = RecipeSection()
    teacher: TeacherSection = TeacherSection()
    tokenizer: TokenizerSection = TokenizerSection()
    data: DataSection = DataSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    training: TrainingSection = TrainingSection()

    def __post_init__(self) -> None:
        if self.task == "pretrain" and not self.model.config:
            raise ParameterError("task: pretrain needs model.config, the entries of a config.json.")
        if self.task == "finetune" and self.model.path is None:
            raise ParameterError("task: finetune needs model.path, a model to go on from.")
        if self.model.config and self.model.path is not None:
            raise ParameterError("model.config begins anew and model.path goes on from a file: give one of them.")
        if self.task == "distill" and self.teacher.path is None:
            raise ParameterError("task: distill needs teacher.path; without model.path the student starts as its copy.")
        if not self.data.train:
            raise ParameterError("data.train lists nothing to train on.")


def read(path: Path, settings: Sequence[str] = ()) -> RunConfig:
    """The file, with `settings` such as "training.steps=100" in the place of what it says."""
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ParameterError(f"{path} holds no keys; see the files in examples/.")
    for setting in settings:
        put(values, setting)
    made: RunConfig = build(RunConfig, values, str(path))
    return made


def put(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise ParameterError(f"{setting!r} is no setting; expected one such as training.steps=100.")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ParameterError(f"{setting!r}: {section} is not a section.")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ParameterError(f"{setting!r}: {text!r} is no YAML.") from error


def build(kind: Any, value: Any, where: str) -> Any:
    """`value` of a YAML file as `kind`; ParameterError says where it is not one."""
    if is_dataclass(kind):
        return build_section(kind, value, where)
    origin, options = get_origin(kind), get_args(kind)
    if origin is Literal:
        if value not in options:
            raise ParameterError(f"{where} is {value!r}; expected {' or '.join(map(str, options))}.")
        return value
    if origin in (Union, types.UnionType):
        return build_first(options, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ParameterError(f"{where} is {value!r:.100}; expected a list.")
        return tuple(build(options[0], each, f"{where}[{i}]") for i, each in enumerate(value))
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    if kind is Any or (isinstance(value, plain) and (plain is bool or not isinstance(value, bool))):
        return value
    raise ParameterError(f"{where} is {value!r:.100}; expected {NAMES.get(plain, plain)}.", hint(value, plain))


NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "keys", Path: "a path"}


def hint(value: Any, kind: Any) -> str:
    """YAML 1.1 takes 1e-3 for a text."""
    try:
        float(value)
    except (TypeError, ValueError):
        return ""
    return f"YAML wants a point and a sign: write {float(value)!r}." if kind is float else ""


def build_first(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    errors = []
    for option in options:
        if option is not type(None):
            try:
                return build(option, value, where)
            except ParameterError as error:
                errors.append(error)
    raise errors[-1]


def build_section(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ParameterError(f"{where} is {value!r:.100}; expected keys: {', '.join(f.name for f in fields(kind))}.")
    hints, known = get_type_hints(kind), {each.name: each for each in fields(kind)}
    for key in value:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            meant = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
            raise ParameterError(f"{where} has an unknown key {key!r}.", meant)
    for name, each in known.items():
        if name not in value and each.default is MISSING and each.default_factory is MISSING:
            raise ParameterError(f"{where} lacks {name!r}.")
    return kind(**{name: build(hints[name], entry, f"{where}: {name}") for name, entry in value.items()})
