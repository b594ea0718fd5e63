"""The recipe of the built-in model, from a folder of text to trained weights.

python -m bitnet.train.builtin --corpus DIR --out FIRST --layers 4 --minutes 100
bitnet export FIRST --folder first
python -m bitnet.train.builtin --corpus DIR --out DIR --from first --minutes 100
bitnet export DIR --gguf stories.gguf
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from bitnet.train import checkpoint, data
from bitnet.train import corpus as texts
from bitnet.train.batches import Rows
from bitnet.train.deepen import deepened
from bitnet.train.export import TOKENIZER, trained
from bitnet.train.model import TernaryLM
from bitnet.train.optimizer import Rates
from bitnet.train.trainer import FINISH, HeldOut, Plan, Trainer
from bitnet.train.vocabulary import BEGIN, END, END_OF_TURN, VOCABULARY_SIZE, train_tokenizer, write_tokenizer

CONTEXT, LAYERS = 512, 6
DESCRIPTION: dict[str, Any] = {
    "model_type": "bitnet",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": VOCABULARY_SIZE,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "relu2",
    "tie_word_embeddings": True,
    "bos_token_id": BEGIN,
    "eos_token_id": [END, END_OF_TURN],
}
TOKENIZER_DOCUMENTS = 30_000


def main() -> None:
    arguments = parse_arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    begin: Path | None = arguments.begin
    run = begin if begin and checkpoint.found(begin) else None
    if begin and not (out / TOKENIZER).exists():
        source = run / TOKENIZER if run else begin
        shutil.copytree(source, out / TOKENIZER, ignore=lambda _, names: [n for n in names if "tokenizer" not in n])
    rows, held_out = prepare(arguments)
    signal.signal(signal.SIGUSR1, lambda _signal, _frame: ask_to_finish(out))
    plan = Plan(
        out, minutes=arguments.minutes if arguments.steps is None else None, steps=arguments.steps, compile=True
    )
    model = trained(run, torch.bfloat16) if run else start(begin, arguments.layers)
    full = Rates()
    rates = replace(full, muon=arguments.rate * full.muon, adam=arguments.rate * full.adam)
    Trainer(model, rows, plan, rates=rates, held_out=held_out).run()


def start(begin: Path | None, layers: int) -> TernaryLM:
    return deepened(begin, layers) if begin else TernaryLM({**DESCRIPTION, "num_hidden_layers": layers})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder with the training texts")
    add("--out", type=Path, required=True, help="folder for all that is made; a killed run resumes from it")
    add("--from", dest="begin", type=Path, help="a model's folder to begin as, or the folder of an earlier run")
    add("--layers", type=int, default=LAYERS)
    add("--rate", type=float, default=1.0, help="the learning rates, as a share of the usual ones")
    add("--minutes", type=float, default=100.0, help="training time, at whose end the learning rate reaches zero")
    add("--steps", type=int, help="count steps instead of minutes: the same weights every time")
    add("--tokens", type=int, default=24_000_000, help="tokens of text to prepare")
    add("--requested", type=float, default=texts.REQUESTED, help="share of TinyStories that answer a request")
    add("--own", type=float, default=texts.OWN, help="share of the text that is the grammar's")
    add("--seed", type=int, default=7, help="of the order of the texts")
    add("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def ask_to_finish(out: Path, minutes: float = 10) -> None:
    (out / FINISH).write_text(str(minutes))


def prepare(arguments: argparse.Namespace) -> tuple[Rows, HeldOut]:
    """Training rows and held-out ones; made once with the tokenizer, then found in the folder `out`."""
    out, seed = Path(arguments.out), int(arguments.seed)
    vocabulary = out / TOKENIZER / "tokenizer.json"
    held_out_text, held_out, train = paths = [out / name for name in ("held_out.txt", "held_out.bin", "train.bin")]
    if not all(path.exists() for path in (vocabulary, *paths)):
        corpus = texts.read(arguments.corpus)
        if not vocabulary.exists():
            documents = islice(texts.mixture(corpus, seed), TOKENIZER_DOCUMENTS)
            spelled = train_tokenizer(text for document in documents for text in texts.texts(document))
            write_tokenizer(spelled, vocabulary.parent)
        tokenizer = Tokenizer.from_file(str(vocabulary))
        held_out_text.write_text(texts.SEPARATOR.join(corpus.held_out), "utf-8")
        data.write_rows(held_out, texts.rows(map(texts.Document, corpus.held_out), tokenizer, CONTEXT))
        mixed = texts.rows(texts.mixture(corpus, seed, arguments.requested, arguments.own), tokenizer, CONTEXT)
        data.write_rows(train, islice(mixed, arguments.tokens // CONTEXT))
    characters = sum(map(len, held_out_text.read_text("utf-8").split(texts.SEPARATOR)))
    measured = data.open_rows(held_out, CONTEXT)
    return Rows(data.open_rows(train, CONTEXT), seed), HeldOut(Rows(measured), len(measured), characters)


if __name__ == "__main__":
    main()
