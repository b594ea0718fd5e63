"""`bitnet eval`: how often a model picks the right one of several texts, and how close to people's its own come."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.loading import Progress, open_model
from bitnet.cli.options import KV, AsJson, Backend, CtxSize, Force, Model, Threads, Weights
from bitnet.engine import EngineConfig, SamplingParams
from bitnet.errors import ParameterError

if TYPE_CHECKING:
    from bitnet.api import BitNet
    from bitnet.evaluate.choice import Accuracy
    from bitnet.evaluate.writing import Closeness

SEQUENCES = 32  # scored side by side
NO_FILES: list[Path] = []
NO_WORDS: list[str] = []


def command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Files of questions with choices, pairs of sentences, or prompts with references; or folders of such."
        ),
    ] = NO_FILES,
    model: Model = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help='"choices", "hellaswag", "piqa", "arc", "answers", "pairs" or "references"; "auto": as it looks.',
        ),
    ] = "auto",
    tasks: Annotated[
        list[str],
        typer.Option("--lm-eval", metavar="TASKS", help='Tasks of lm-evaluation-harness, such as "hellaswag,piqa".'),
    ] = NO_WORDS,
    include_path: Annotated[
        Path | None, typer.Option("--include-path", help="With --lm-eval: a folder of further tasks.")
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, help="With --lm-eval: examples before each question.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask as in a conversation, where the model writes.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Of an answer to a prompt.")] = 256,
    stop: Annotated[list[str], typer.Option("--stop", help="Ends an answer to a prompt; may be repeated.")] = NO_WORDS,
    tokenize: Annotated[str, typer.Option("--tokenize", help="How BLEU cuts words, by sacrebleu's names.")] = "13a",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Questions of each file or task; 0: all.")] = 0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what --limit draws from a file.")] = 0,
    threads: Threads = 0,
    ctx_size: CtxSize = EngineConfig().ctx_size,
    kv: KV = "f16",
    backend: Backend = "cpu",
    weights: Weights = "auto",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    from bitnet.cli.eval_tables import lines, to_json
    from bitnet.evaluate.questions import Passage, read_questions
    from bitnet.evaluate.writing import metrics

    names = [name.strip() for word in tasks for name in word.split(",") if name.strip()]
    if not files and not names:
        raise ParameterError("There is nothing to ask.", "Name a file of questions, or a task: --lm-eval hellaswag")
    asked = {file: draw(read_questions(file, layout), limit, seed) for file in files}
    if any(isinstance(questions[0], Passage) for questions in asked.values()):
        metrics(tokenize)  # before the model is loaded
    evaluate = harness() if names else None
    options: dict[str, Any] = {"threads": threads, "kv": kv, "backend": backend, "weights": weights, "force": force}
    bitnet = open_model(model, ctx_size=ctx_size, head="full", max_sequences=SEQUENCES, **options)
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, stop=tuple(stop))
    found = {}
    for file, questions in asked.items():
        progress = Progress(f"asking {file.name}")
        try:
            found[file] = answered(bitnet, questions, params, chat, tokenize, progress)
        finally:
            progress.clear()
    results: Any = None
    if evaluate is not None:
        results = evaluate(
            bitnet, names, include_path=include_path, num_fewshot=num_fewshot, limit=limit or None, chat=chat
        )
    if as_json:
        print(json.dumps(to_json(bitnet.path, found, results)))
    else:
        print("\n".join(lines(found, results)))


def harness() -> Any:
    """What runs tasks of lm-evaluation-harness."""
    try:
        from bitnet.plugins.lm_eval import evaluate
    except ImportError as missing:
        raise ParameterError(f"--lm-eval needs {missing.name}.", "Install it: pip install 'bitnet[eval]'") from missing
    return evaluate


def answered(
    bitnet: BitNet, questions: list[Any], params: SamplingParams, chat: bool, tokenize: str, progress: Progress
) -> Accuracy | Closeness:
    from bitnet.evaluate.choice import accuracy
    from bitnet.evaluate.questions import Passage
    from bitnet.evaluate.writing import closeness

    if not isinstance(questions[0], Passage):
        return accuracy(bitnet.llm, bitnet.tokenizer, questions, progress)
    if not chat:
        prompts = [bitnet.tokenize(each.prompt) for each in questions]
    else:
        template, params = bitnet.chat_template, replace(params, stop=params.stop + bitnet.chat_template.stop)
        turns = [[{"role": "user", "content": each.prompt}] for each in questions]
        prompts = [template.apply(turn, bitnet.tokenizer) for turn in turns]
    return closeness(bitnet.llm, prompts, questions, params, tokenize, progress)


def draw(questions: list[Any], limit: int, seed: int) -> list[Any]:
    """Some of them, in their order: the same ones for the same seed."""
    if not limit or limit >= len(questions):
        return questions
    return [questions[i] for i in sorted(random.Random(seed).sample(range(len(questions)), limit))]
