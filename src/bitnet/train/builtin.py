"""The recipe of the built-in model, from a folder of text to trained weights.

python -m bitnet.train.builtin --corpus DIR --out DIR --minutes 100
"""

from __future__ import annotations

import argparse
import os
import signal
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bitnet.models.decoder import Config
from bitnet.train import data
from bitnet.train.trainer import FINISH, Plan, Trainer
from bitnet.train.vocabulary import VOCABULARY_SIZE, train_tokenizer

CONTEXT = 512
CONFIG = Config(
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=VOCABULARY_SIZE,
    max_position_embeddings=CONTEXT,
    hidden_act="relu2",
)
TOKENIZER_DOCUMENTS, SEED = 30_000, 7


def main() -> None:
    arguments = parse_arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    rows, held_out = prepare(arguments.corpus, out, arguments.tokens)
    signal.signal(signal.SIGUSR1, lambda _signal, _frame: ask_to_finish(out))
    Trainer(CONFIG, rows, held_out, Plan(out, minutes=arguments.minutes, steps=arguments.steps)).run()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder with the training texts")
    add("--out", type=Path, required=True, help="folder for all that is made; a killed run resumes from it")
    add("--minutes", type=float, default=100.0, help="training time, at whose end the learning rate reaches zero")
    add("--steps", type=int, help="count steps instead of minutes: the same weights every time")
    add("--tokens", type=int, default=24_000_000, help="tokens of text to prepare")
    add("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def ask_to_finish(out: Path, minutes: float = 10) -> None:
    (out / FINISH).write_text(str(minutes))


def prepare(folder: Path, out: Path, tokens: int) -> tuple[NDArray[np.uint16], tuple[NDArray[np.uint16], int]]:
    """Training rows, and held-out rows with their characters; made once with the tokenizer, then found in `out`."""
    names = ("tokenizer.json", "held_out.txt", "held_out.bin", "train.bin")
    vocabulary, held_out_text, held_out, train = paths = [out / name for name in names]
    if not all(path.exists() for path in paths):
        corpus = data.read(folder)
        documents = islice(data.mixture(corpus, SEED), TOKENIZER_DOCUMENTS)
        tokenizer = train_tokenizer(text for document in documents for text in data.texts(document))
        tokenizer.save(str(vocabulary))
        held_out_text.write_text(data.SEPARATOR.join(corpus.held_out), "utf-8")
        whole = (data.encode(tokenizer, data.Document(text)) for text in corpus.held_out)
        data.write_rows(held_out, data.pack(whole, CONTEXT))
        data.write_mixture(train, corpus, tokenizer, tokens, CONTEXT, SEED)
    characters = sum(map(len, held_out_text.read_text("utf-8").split(data.SEPARATOR)))
    return data.open_rows(train, CONTEXT), (data.open_rows(held_out, CONTEXT), characters)


if __name__ == "__main__":
    main()
