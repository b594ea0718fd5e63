"""Whether two model files are the same model: their tokenizers, their logits and what they write."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bitnet.formats
from bitnet import backends, models
from bitnet.backends.base import BLOCK_SIZE, Step
from bitnet.engine.sampling import kl_divergence, log_softmax
from bitnet.models import Decoder
from bitnet.models.load import Progress
from bitnet.tokenizer import Tokenizer

BOUND = 1e-3  # nats of KL divergence; rounding noise of float32 sums alone stays far below
GREEDY = 32  # tokens written after each prompt
TEXTS = (
    "", " ", "  two  spaces ", "\n\n\t\r\n", "Hello, world!", "don't they'll I'VE", "1234567890 3.14159 1,000,000",
    "The quick brown fox jumps over another lazy dog, and then returns in winter.",
    "Größe naïveté Žižek", "Привет, мир", "你好，世界。", "こんにちは", "مرحبا", "नमस्ते", "สวัสดี",
    "👩‍👩‍👧‍👦 🇩🇪 🏳️‍🌈", "e\u0301 é ﬁ",
    "\u200b\u00a0\ufeff", "\x00\x01\x7f", "def f(x):\n    return x ** 2\n", "<s></s><|eot_id|><|im_end|>[PAD0]<0x0A>",
    "a" * 300, "▁▁ ▁a", "https://example.org/?q=1&r=%20#top", "{\"a\": [1, 2, {\"b\": null}]}", "ÀÉÎ" * 40,
)  # fmt: skip
PROMPTS = (
    "The future of AI is",
    "Once upon a time there was a little girl who lived",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
)


@dataclass(frozen=True, slots=True)
class Verification:
    """mean_kl, max_kl: of the source's next-token distributions from the result's, in nats. difference: the largest
    between two logits. same_top: the share of positions where the likeliest token is the same. greedy: of `written`
    tokens how many the two wrote alike. texts: those that the tokenizers cut differently."""

    texts: tuple[str, ...]
    positions: int
    mean_kl: float
    max_kl: float
    difference: float
    same_top: float
    greedy: int
    written: int

    def passed(self, lossless: bool) -> bool:
        """Whether this was to be expected: the same ids of texts, and the same model where nothing was lost."""
        return not self.texts and math.isfinite(self.mean_kl) and (not lossless or self.mean_kl <= BOUND)

    def markdown(self, source: Path, target: Path, notes: Sequence[str], lossless: bool) -> str:
        rows = {
            "tokenizer": "the same ids"
            if not self.texts
            else f"differs on {len(self.texts)} of {len(TEXTS + PROMPTS)} texts",
            "KL divergence, mean": f"{self.mean_kl:.3g} nats",
            "KL divergence, largest": f"{self.max_kl:.3g} nats",
            "largest difference of logits": "none" if self.difference == 0 else f"{self.difference:.3g}",
            "same likeliest token": f"{100 * self.same_top:.2f} % of {self.positions} positions",
            "same greedy tokens": f"{self.greedy} of {self.written}",
        }
        bound = f"mean KL at most {BOUND:g}" if lossless else "a lossy conversion: none but the tokenizer"
        lines = [f"# {target.name}, made from {source.name}", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in rows.items()]
        lines += ["", *(f"- {note}" for note in notes), "- Nothing was rounded." * lossless, f"- Bound: {bound}."]
        lines += ["", "Passed." if self.passed(lossless) else "**Failed.**"]
        return "\n".join(line for line in lines if line is not None).replace("\n\n\n", "\n\n") + "\n"


@dataclass(frozen=True, slots=True)
class Behaviour:
    ids: list[list[int]]  # of TEXTS and PROMPTS
    logits: list[NDArray[np.float32]]  # (tokens, vocab) of each prompt
    greedy: list[list[int]]


def verify(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    backend: str = "cpu",
    progress: Progress = lambda done, total: None,
    force: bool = False,
) -> Verification:
    """Run both models, one after the other, on the same token ids; the memory must hold one of them packed."""
    before = behaviour(Path(source), backend, progress, force, None)
    after = behaviour(Path(target), backend, progress, force, before)
    texts = tuple(text for text, a, b in zip(TEXTS + PROMPTS, before.ids, after.ids, strict=True) if a != b)
    kl, tops, largest = [], [], 0.0
    for a, b in zip(before.logits, after.logits, strict=True):
        kl.append(divergence(a, b))
        tops.append(a.argmax(axis=1) == b.argmax(axis=1))
        largest = max(largest, float(np.abs(a - b).max()))
    every, same = np.concatenate(kl), np.concatenate(tops)
    alike = sum(alike_at_first(a, b) for a, b in zip(before.greedy, after.greedy, strict=True))
    written = sum(map(len, before.greedy))
    return Verification(
        texts, len(every), float(every.mean()), float(every.max()), largest, float(same.mean()), alike, written
    )


def behaviour(path: Path, backend: str, progress: Progress, force: bool, like: Behaviour | None) -> Behaviour:
    """like: the other model's, whose ids of the prompts are taken, so that the models alone are compared."""
    ops = backends.make(backend)
    with bitnet.formats.open(path) as checkpoint:
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        model = models.load(checkpoint, ops, progress, force, "full")
    ids = [tokenizer.encode(text) for text in TEXTS + PROMPTS]
    prompts = (like.ids if like else ids)[len(TEXTS) :]
    found = [run(model, prompt or [0]) for prompt in prompts]
    return Behaviour(ids, [logits for logits, _ in found], [greedy for _, greedy in found])


def run(model: Decoder, ids: list[int]) -> tuple[NDArray[np.float32], list[int]]:
    """Logits of every position of `ids`, and the greedy tokens after it."""
    config = model.config
    ids = [i for i in ids if i < config.vocab_size][: config.max_position_embeddings - 1]
    count = min(GREEDY, config.max_position_embeddings - len(ids))
    cache = model.ops.new_cache(
        config.num_hidden_layers,
        -(-(len(ids) + count) // BLOCK_SIZE),
        config.num_key_value_heads,
        config.head_dim,
        "f32",
    )
    logits = np.asarray(model(Step.whole(ids), cache))
    return logits, greedy(lambda step: model(step, cache), logits[-1], len(ids), count)


def greedy(
    run: Callable[[Step], NDArray[np.float32]], logits: NDArray[np.float32], length: int, count: int
) -> list[int]:
    """`count` tokens after the `length` that the cache holds, the first by `logits`; through whatever ends a text."""
    found = [int(logits.argmax())]
    while len(found) < count:
        step = next_token(found[-1], length + len(found) - 1)
        found.append(int(np.asarray(run(step))[0].argmax()))
    return found


def next_token(token: int, position: int) -> Step:
    """A step of one token, behind the `position` that the cache holds already."""
    blocks = np.arange(position // BLOCK_SIZE + 1, dtype=np.int32)[None]
    one = np.array([0, 1], np.int32)
    return Step(np.array([token], np.int32), np.array([position], np.int32), one, one[:1], blocks)


def divergence(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(softmax(a) || softmax(b)) of each row."""
    return np.asarray(kl_divergence(log_softmax(a), log_softmax(b)), np.float64)


def alike_at_first(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
