"""How far one model's predictions are from another's, on a text: what a conversion or a quantisation changed.

The windows are those of perplexity.py. The divergence is KL(base || model), in nats, as llama.cpp's
`perplexity --kl-divergence` has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet.engine.sampling import kl_divergence, log_softmax
from bitnet.errors import BitNetError, ParameterError
from bitnet.evaluate.perplexity import cut, runner, window_logits, window_tokens
from bitnet.models import Decoder
from bitnet.models.load import Progress
from bitnet.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of every scored token. kl: (tokens,) nats. same_top: whether both find the same token the likeliest. losses and
    base_losses: -log p of the text's own token."""

    kl: NDArray[np.float64]
    same_top: NDArray[np.bool_]
    losses: NDArray[np.float64]
    base_losses: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.kl.mean())

    @property
    def error(self) -> float:
        return float(self.kl.std()) / math.sqrt(max(len(self.kl) - 1, 1))

    @property
    def agreement(self) -> float:
        """The share of tokens where both would write the same one greedily."""
        return float(self.same_top.mean())

    @property
    def perplexities(self) -> tuple[float, float]:
        """Of the model and of the base."""
        model, base = (math.exp(min(float(each.mean()), 700.0)) for each in (self.losses, self.base_losses))
        return model, base

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.kl, share))


def divergence(
    model: Decoder,
    base: Decoder,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    ctx: int = 512,
    kv: str = "f16",
    progress: Progress = lambda done, total: None,
) -> Divergence:
    """Both models read the same windows in turn.

    Raises ParameterError where their vocabularies differ or the text is too short, BitNetError where one of them gives
    numbers that are not finite.
    """
    vocabulary = tokenizer.vocab_size
    if min(model.config.vocab_size, base.config.vocab_size) < vocabulary:
        raise ParameterError("The models have different vocabularies: their predictions cannot be compared.")
    ctx = min(ctx, model.config.max_position_embeddings, base.config.max_position_embeddings)
    windows = list(cut(len(ids), ctx))
    run, run_base = runner(model, ctx, kv), runner(base, ctx, kv)
    parts: list[tuple[NDArray[np.float64], ...]] = []
    for done, window in enumerate(windows):
        progress(done, len(windows))
        tokens, first = window_tokens(window, ids, tokenizer, stride=0)
        pairs = zip(window_logits(run, tokens, first), window_logits(run_base, tokens, first), strict=True)
        for (at, logits), (_, base_logits) in pairs:
            # What pads the embedding to a round number of rows is no token.
            parts.append(row_by_row(logits[:, :vocabulary], base_logits[:, :vocabulary], tokens[at : at + len(logits)]))
    progress(len(windows), len(windows))
    kl, same, losses, base_losses = (np.concatenate(part) for part in zip(*parts, strict=True))
    if not (np.isfinite(losses).all() and np.isfinite(base_losses).all()):
        raise BitNetError("The logits of one of the models are not finite.", "Its file may be damaged.")
    return Divergence(kl, same.astype(bool), losses, base_losses)


def row_by_row(
    logits: NDArray[np.float32], base_logits: NDArray[np.float32], ids: Sequence[int]
) -> tuple[NDArray[np.float64], ...]:
    q, p = (np.asarray(log_softmax(each), np.float64) for each in (logits, base_logits))
    rows = np.arange(len(logits))
    kl = np.asarray(kl_divergence(p, q), np.float64)
    same = (logits.argmax(axis=1) == base_logits.argmax(axis=1)).astype(np.float64)
    return kl, same, -q[rows, ids], -p[rows, ids]
