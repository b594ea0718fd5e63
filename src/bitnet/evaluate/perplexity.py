"""Perplexity: how many tokens a model hesitates between, on average, at each token of a text.

The text is read in windows, as llama.cpp's `perplexity` tool reads it: windows of `ctx` tokens side by side, of which
the second half is scored, so that every scored token has at least half a window before it; a begin-of-text token, where
the model wants one, takes the place of each window's first token; what does not fill a window is left out.
With a stride the windows overlap and every token but the first is scored once, with at least ctx - stride tokens before
it as soon as there are so many: slower, and lower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.base import BLOCK_SIZE, Step
from bitnet.engine.sampling import log_softmax
from bitnet.errors import BitNetError, ParameterError
from bitnet.models import Decoder
from bitnet.models.load import Progress
from bitnet.tokenizer import Tokenizer

ROWS = 128  # of logits at a time: those of a vocabulary of 128,256 are 65 MB, and as much twice in float64
Run = Callable[[Step], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `start` to `end` of the text, of which those from `scored` on count."""

    start: int
    end: int
    scored: int


@dataclass(frozen=True, slots=True)
class Perplexity:
    """losses: -log p of the scored tokens, natural. characters: of the text that these tokens are. ctx: tokens of a
    window, the text's where it fills none."""

    losses: NDArray[np.float64]
    characters: int
    windows: int
    ctx: int

    @property
    def value(self) -> float:
        return math.exp(min(float(self.losses.mean()), 700.0))  # beyond that a float has no number for it

    @property
    def error(self) -> float:
        """The standard error of `value`, were the losses independent."""
        return self.value * float(self.losses.std()) / math.sqrt(max(len(self.losses) - 1, 1))

    @property
    def bits_per_character(self) -> float:
        return float(self.losses.sum()) / math.log(2) / max(self.characters, 1)


def score_text(
    model: Decoder,
    tokenizer: Tokenizer,
    text: str,
    ctx: int = 512,
    stride: int = 0,
    kv: str = "f16",
    progress: Progress = lambda done, total: None,
) -> Perplexity:
    """The perplexity of `model` on `text`."""
    ids = tokenizer.encode(text)
    ctx = min(ctx, model.config.max_position_embeddings)
    return perplexity(model, tokenizer, ids, ctx, stride, kv, progress)


def perplexity(
    model: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    ctx: int = 512,
    stride: int = 0,
    kv: str = "f16",
    progress: Progress = lambda done, total: None,
) -> Perplexity:
    """The perplexity of `model` on a text of token ids.

    kv: the type of the cached keys and values. Raises ParameterError where the text is too short or a size out of
    range, BitNetError where the model gives numbers that are not finite.
    """
    windows = list(cut(len(ids), ctx, stride))
    run = runner(model, ctx, kv)
    losses, characters = [], 0
    for done, window in enumerate(windows):
        progress(done, len(windows))
        tokens, first = window_tokens(window, ids, tokenizer, stride)
        losses.append(window_losses(run, tokens, first))
        characters += len(tokenizer.decode(tokens)) - len(tokenizer.decode(tokens[:first]))
    progress(len(windows), len(windows))
    return Perplexity(np.concatenate(losses), characters, len(windows), windows[0].end)


def runner(model: Decoder, ctx: int, kv: str) -> Run:
    """The model on a cache of its own for one window."""
    c = model.config
    cache = model.ops.new_cache(c.num_hidden_layers, -(-ctx // BLOCK_SIZE), c.num_key_value_heads, c.head_dim, kv)
    return model.ops.compile(model, cache)


def window_tokens(window: Window, ids: Sequence[int], tokenizer: Tokenizer, stride: int) -> tuple[list[int], int]:
    """The tokens of a window, and where those begin that are scored."""
    tokens = list(ids[window.start : window.end])
    if tokenizer.add_bos and tokenizer.bos_id is not None and not stride:
        tokens[0] = tokenizer.bos_id
    return tokens, window.scored - window.start


def cut(count: int, ctx: int, stride: int = 0) -> Iterator[Window]:
    """The windows of a text of `count` tokens; a single shorter one where the text does not fill the first."""
    if ctx < 4 or not 0 <= stride < ctx:
        raise ParameterError(f"ctx is {ctx} and stride {stride}; expected a ctx of at least 4 and a stride below it.")
    if count < 4:
        raise ParameterError(f"The text has {count} tokens; perplexity takes at least 4.")
    if stride:
        yield Window(0, min(ctx, count), 1)
        for scored in range(ctx, count, stride):
            end = min(scored + stride, count)
            yield Window(end - ctx, end, scored)
        return
    ctx = min(ctx, count)
    for start in range(0, count - ctx + 1, ctx):
        yield Window(start, start + ctx, start + ctx // 2 + 1)


def window_losses(run: Run, ids: Sequence[int], first: int) -> NDArray[np.float64]:
    """-log p of the tokens from `first` on, each given all before it."""
    losses = np.empty(len(ids) - first)
    for at, logits in window_logits(run, ids, first):
        found = log_softmax(logits)[np.arange(len(logits)), np.asarray(ids[at : at + len(logits)])]
        losses[at - first : at - first + len(logits)] = -found
    if not np.isfinite(losses).all():
        raise BitNetError("The model's logits are not finite.", "The file may be damaged, or its numbers too large.")
    return losses


def window_logits(run: Run, ids: Sequence[int], first: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """What the model says of the tokens from `first` on: (place of the first of them, logits (tokens, vocab)), a few
    tokens at a time."""
    tokens = np.asarray(ids, np.int32)
    blocks = np.arange(-(-len(tokens) // BLOCK_SIZE), dtype=np.int32)[None]
    # What needs no logits goes first; then a few rows at a time. The last token predicts nothing that is scored.
    starts = [0, *range(first - 1, len(tokens) - 1, ROWS)]
    for start, end in zip(starts, [*starts[1:], len(tokens) - 1], strict=True):
        if start == end:
            continue
        want = np.arange(end - start, dtype=np.int32) if start >= first - 1 else np.empty(0, np.int32)
        positions = np.arange(start, end, dtype=np.int32)
        logits = run(Step(tokens[start:end], positions, np.array([0, end - start], np.int32), want, blocks))
        if len(want):
            yield start + 1, np.asarray(logits)
