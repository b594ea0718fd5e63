"""A run from its configuration: tokenizer, rows, model and trainer, put together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from bitnet.errors import ParameterError
from bitnet.formats import open as open_checkpoint
from bitnet.formats.atomic import replacing, replacing_folder
from bitnet.quant.threshold import Rule
from bitnet.tokenizer import Tokenizer, chat_template_for
from bitnet.train import checkpoint, data
from bitnet.train.batches import Rows
from bitnet.train.config import RunConfig
from bitnet.train.described import Described, refuse_misspelt, with_sub_norms
from bitnet.train.distill import Distillation, Weights
from bitnet.train.export import TOKENIZER, check_exportable, trained
from bitnet.train.model import TernaryLM
from bitnet.train.optimizer import Rates
from bitnet.train.parallel import Group
from bitnet.train.quantizers import FLOAT, Recipe
from bitnet.train.records import records
from bitnet.train.schedule import Schedule
from bitnet.train.trainer import HeldOut, Plan, Trainer
from bitnet.train.vocabulary import train_tokenizer, write_tokenizer

CONFIG = "config.yaml"
ROWS = ("train.bin", "held_out.bin")
LASTING = ("task", "model", "recipe", "teacher", "tokenizer", "data", "optimizer", "schedule")  # the same when resumed
READ = ("task", "model", "teacher", "tokenizer", "data")  # of these, what the tokenizer and the rows are made by


def run(config: RunConfig) -> bool:
    """Train, or go on from the last checkpoint in `config.out`; False where a signal ended it before the end."""
    group = Group.join()
    try:
        torch.set_num_threads(config.training.threads or max(1, torch.get_num_threads() // group.size))
        if group.rank == 0:
            settle(config)
        group.wait()
        module = make_module(config)  # what is wrong with it is said before the texts are read
        if group.rank == 0:
            make_rows(config)
        group.wait()
        return make_trainer(config, module, group).run()
    finally:
        group.leave()


def settle(config: RunConfig) -> None:
    """Note the configuration and make the tokenizer, where `config.out` does not hold them already."""
    config.out.mkdir(parents=True, exist_ok=True)
    values, path = plain(asdict(config)), config.out / CONFIG
    if path.exists():
        before = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(before, dict) or not before.keys() >= set(LASTING):
            raise ParameterError(f"{path} is of something else than a training run.", "Choose another out.")
        changed = [name for name in LASTING if before[name] != values[name]]
        if changed and is_run(config.out):
            raise ParameterError(
                f"{config.out} holds a run with another {', '.join(changed)}.",
                "Choose another out, or delete that folder.",
            )
        if set(changed) & set(READ):
            begin_again(config.out)
    with replacing(path) as file:
        file.write(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())
    if not (config.out / TOKENIZER).exists():
        make_tokenizer(config)


def begin_again(out: Path) -> None:
    """Nothing was trained yet: what was made by another configuration goes."""
    shutil.rmtree(out / TOKENIZER, ignore_errors=True)
    for name in ROWS:
        (out / name).unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """As YAML writes and reads it."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def make_tokenizer(config: RunConfig) -> None:
    wanted, target = config.tokenizer, config.out / TOKENIZER
    if wanted.vocabulary:
        trained = train_tokenizer(first_texts(config, wanted.documents), wanted.vocabulary)
        with replacing_folder(target) as folder:
            write_tokenizer(trained, folder)
        return
    path = wanted.path or config.model.path or config.teacher.path
    if path is None:
        raise ParameterError("The run has no tokenizer: give tokenizer.path, or tokenizer.vocabulary to train one.")
    with replacing_folder(target) as folder:
        for name, value in open_tokenizer(path).to_folder().items():
            (folder / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", "utf-8")


def open_tokenizer(path: Path) -> Tokenizer:
    """Of a run, a model folder or a file."""
    if path.is_dir():
        return Tokenizer.from_folder(path / TOKENIZER if is_run(path) else path)
    with open_checkpoint(path) as file:
        return Tokenizer.from_checkpoint(file)


def first_texts(config: RunConfig, count: int) -> Iterable[str]:
    for source in config.data.train:
        for record in islice(records(source.path, source.separator), count):
            if isinstance(record.get(source.text), str):
                yield record[source.text]
            messages = record.get(source.messages)
            for message in messages if isinstance(messages, list) else []:
                if isinstance(message, dict) and isinstance(message.get("content"), str):
                    yield message["content"]


def make_rows(config: RunConfig) -> None:
    tokenizer = Tokenizer.from_folder(config.out / TOKENIZER)
    encoder = data.Encoder(tokenizer, chat_template_for(Described(description(config)), tokenizer))
    made = config.data
    for name, sources, limit in zip(ROWS, (made.train, made.held_out), (made.tokens, None), strict=True):
        if sources:
            data.prepare(config.out / name, sources, encoder, made.length, limit)


def description(config: RunConfig) -> dict[str, Any]:
    """What the chat template is chosen by."""
    if config.model.config:
        return config.model.config
    path = config.model.path or config.teacher.path
    assert path is not None  # RunConfig has seen to it
    if is_run(path):
        return trained(path).description
    with open_checkpoint(path) as file:
        return {"model_type": file.architecture}


def make_trainer(config: RunConfig, module: nn.Module, group: Group) -> Trainer:
    training, out = asdict(config.training), config.out
    training.pop("threads")
    plan = Plan(out, **training)
    train, tested = (out / name for name in ROWS)
    rows = Rows(data.open_rows(train, config.data.length), training["seed"])
    held_out = None
    if config.data.held_out:
        words = data.open_rows(tested, config.data.length)
        held_out = HeldOut(Rows(words), len(words))
    return Trainer(
        module,
        rows,
        plan,
        rates=Rates(**asdict(config.optimizer)),
        schedule=Schedule(plan.end, **asdict(config.schedule)),
        held_out=held_out,
        group=group,
    )


def make_module(config: RunConfig) -> nn.Module:
    chosen, dtype = config.recipe, getattr(torch, config.model.dtype)
    rule = Rule(chosen.rule, chosen.alpha, chosen.group)
    recipe = Recipe(rule, chosen.activations, chosen.trainable_scale, chosen.mixed)
    options = {"dtype": dtype, "checkpointing": config.model.checkpointing, "seed": config.training.seed}
    path = config.model.path or config.teacher.path
    if config.model.config:
        tokens = Tokenizer.from_folder(config.out / TOKENIZER).vocab_size
        description = {"vocab_size": tokens, **config.model.config}
        refuse_misspelt(description)
        model = TernaryLM(description, recipe, **options)
        if model.config.vocab_size < tokens:
            raise ParameterError(f"The tokenizer has {tokens} tokens, the model {model.config.vocab_size}.")
    else:
        assert path is not None  # RunConfig has seen to it
        model = opened(path, recipe, config.model.sub_norms, **options)
    recipe.refuse_unmatched(model.projections())
    check_exportable(model)
    if config.data.length > model.config.max_position_embeddings:
        raise ParameterError(
            f"Rows of {config.data.length} tokens do not fit into the model's context of "
            f"{model.config.max_position_embeddings}."
        )
    if config.task != "distill":
        return model
    weights = asdict(config.teacher)
    teacher = opened(weights.pop("path"), FLOAT, False, dtype=dtype)
    return Distillation(model, teacher, Weights(**weights))


def opened(path: Path, recipe: Recipe, sub_norms: bool, **options: Any) -> TernaryLM:
    """The masters of a model file, or of a run, which are the unrounded ones."""
    if not is_run(path):
        return TernaryLM.from_pretrained(path, recipe, sub_norms=sub_norms, **options)
    before = trained(path)
    description = with_sub_norms(before.description) if sub_norms else before.description
    model = TernaryLM(description, recipe, **options)
    model.load_masters((name, before.master(name).detach().numpy()) for name in before.shapes)
    return model


def is_run(path: Path) -> bool:
    return path.is_dir() and bool(checkpoint.found(path))
