"""`bitnet eval`: how often a model picks the right one of several texts."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.loading import Progress, open_model
from bitnet.cli.options import KV, AsJson, Backend, CtxSize, Force, Model, Threads, Weights
from bitnet.engine import EngineConfig

if TYPE_CHECKING:
    from bitnet.evaluate.choice import Accuracy

SEQUENCES = 32  # scored side by side


def command(
    files: Annotated[
        list[Path], typer.Argument(help="Files of questions with choices or of pairs of sentences, or folders of such.")
    ],
    model: Model = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout", help='"choices", "hellaswag", "piqa", "arc", "answers" or "pairs"; "auto": as it looks.'
        ),
    ] = "auto",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Questions drawn from each file; 0: all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what --limit draws.")] = 0,
    threads: Threads = 0,
    ctx_size: CtxSize = EngineConfig().ctx_size,
    kv: KV = "f16",
    backend: Backend = "cpu",
    weights: Weights = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    from bitnet.evaluate.choice import accuracy
    from bitnet.evaluate.questions import read_questions

    asked = {file: draw(read_questions(file, layout), limit, seed) for file in files}
    options: dict[str, Any] = {"threads": threads, "kv": kv, "backend": backend, "weights": weights, "force": force}
    bitnet = open_model(model, ctx_size=ctx_size, head="full", max_sequences=SEQUENCES, **options)
    found = {}
    for file, questions in asked.items():
        progress = Progress(f"scoring {file.name}")
        try:
            found[file] = accuracy(bitnet.llm, bitnet.tokenizer, questions, progress)
        finally:
            progress.clear()
    if as_json:
        tasks = [to_json(file, each) for file, each in found.items()]
        print(json.dumps({"model": str(bitnet.path), "tasks": tasks}))
    else:
        print(table(found))


def draw(questions: list[Any], limit: int, seed: int) -> list[Any]:
    """Some of them, in their order: the same ones for the same seed."""
    if not limit or limit >= len(questions):
        return questions
    return [questions[i] for i in sorted(random.Random(seed).sample(range(len(questions)), limit))]


def to_json(file: Path, found: Accuracy) -> dict[str, Any]:
    """With the names that lm-evaluation-harness gives to its results."""
    return {
        "task": file.stem,
        "file": str(file),
        "n": found.questions,
        "acc": found.acc,
        "acc_stderr": found.error(found.acc),
        "acc_norm": found.acc_norm,
        "acc_norm_stderr": found.error(found.acc_norm),
        "chance": found.chance,
    }


def table(found: dict[Path, Accuracy]) -> str:
    rows: list[tuple[str, ...]] = [("task", "questions", "acc", "acc_norm", "chance")]
    for file, each in found.items():
        shares = (f"{100 * share:.1f} ± {100 * each.error(share):.1f} %" for share in (each.acc, each.acc_norm))
        rows.append((file.stem, f"{each.questions:,}", *shares, f"{100 * each.chance:.1f} %"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
