"""From logits to the next token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.base import TopLogits
from bitnet.errors import BitNetError, ParameterError

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.integer[Any]]


def knob(default: Any, help: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field of SamplingParams: the command line and the server read its help and its bounds from here."""
    return field(default=default, metadata={"help": help, "low": low, "high": high})


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens, and when to stop.

    The steps are applied in this order: logit_bias, what a constraint rules out, penalties, temperature, top_k, top_p,
    min_p, then one draw. Log-probabilities are those before all of them.
    """

    max_tokens: int | None = knob(None, "tokens to generate at most; none: until the context is full", 0)
    temperature: float = knob(0.8, "spread of the distribution; 0 always takes the likeliest token", 0, 100)
    top_k: int = knob(40, "keep the k likeliest tokens; 0 keeps all", 0)
    top_p: float = knob(0.95, "keep the likeliest tokens that together reach this probability; 1 keeps all", 0, 1)
    min_p: float = knob(0.05, "drop tokens less likely than this share of the likeliest; 0 keeps all", 0, 1)
    repetition_penalty: float = knob(1.0, "divide positive logits of tokens seen before by this; 1 is off", 1e-3, 100)
    presence_penalty: float = knob(0.0, "subtract this from tokens generated before", -100, 100)
    frequency_penalty: float = knob(0.0, "subtract this for each time a token was generated", -100, 100)
    seed: int | None = knob(None, "same seed, same tokens; none draws a fresh one", 0, 2**64 - 1)
    stop: tuple[str, ...] = knob((), "stop before any of these strings")
    ignore_eos: bool = knob(False, "go on after the model's end-of-text token")
    logprobs: int | None = knob(None, "also return log-probabilities of this many likeliest tokens", 0, 1000)
    logit_bias: tuple[tuple[int, float], ...] = knob(
        (), "pairs of a token id and what is added to its logit", -100, 100
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value, low, high = getattr(self, each.name), each.metadata["low"], each.metadata["high"]
            if each.name == "stop":
                check_stop(value)
            elif each.name == "logit_bias":
                check_bias(value, low, high)
            elif value is None and each.default is None:
                continue
            elif isinstance(value, bool) != isinstance(each.default, bool) or not isinstance(value, (int, float)):
                raise ParameterError(f"{each.name} is {value!r}; expected a number.")
            elif not isinstance(each.default, float) and not isinstance(value, int):
                raise ParameterError(f"{each.name} is {value!r}; expected an integer.")
            elif not low <= value <= high:
                span = f"{low} or more" if high == math.inf else f"{low} to {high}"
                raise ParameterError(f"{each.name} is {value}; expected {span}.")

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def top(self) -> int:
        """How many of the likeliest logits decide the token; 0: all."""
        if self.has_penalties or self.logit_bias or self.logprobs is not None:
            return 0
        return self.top_k if self.temperature else 1


def check_stop(stop: Any) -> None:
    if not isinstance(stop, (tuple, list)) or not all(isinstance(s, str) and s for s in stop):
        raise ParameterError(f"stop is {stop!r}; expected non-empty strings.")


def check_bias(bias: Any, low: float, high: float) -> None:
    pairs = isinstance(bias, (tuple, list)) and all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in bias)
    if not pairs or not all(isinstance(i, int) and isinstance(x, (int, float)) and low <= x <= high for i, x in bias):
        raise ParameterError(
            f"logit_bias is {bias!r:.60}; expected pairs of a token id and a number from {low} to {high}."
        )


def sample(
    logits: Floats | TopLogits,
    params: SamplingParams,
    prompt: Mapping[int, int],
    output: Mapping[int, int],
    draw: float,
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    """The next token.

    logits: (vocab,). prompt, output: how often each token occurred there. draw: uniform in [0, 1). allowed: (vocab,),
    some of them; None: all. The result depends on nothing else, so neighbours in a batch cannot change it.
    """
    if isinstance(logits, TopLogits):
        if allowed is None and params.top:
            check(logits.values)
            return draw_from(logits.ids, logits.values, params, draw)
        logits = np.asarray(logits)
    check(logits)
    if params.logit_bias:
        logits = biased(logits, params.logit_bias)
    if allowed is not None:
        logits = np.where(allowed, logits, np.float32(-np.inf))
    if params.has_penalties:
        logits = penalize(logits, params, prompt, output)
    if params.temperature == 0:
        return int(logits.argmax())
    # What is ruled out weighs nothing: all but a few where the head was screened.
    possible: Ids = np.flatnonzero(logits > -np.inf) if logits.min() == -np.inf else np.arange(len(logits))
    return draw_from(possible, logits[possible], params, draw)


def draw_from(possible: Ids, logits: Floats, params: SamplingParams, draw: float) -> int:
    """One of the ids `possible`, which ascend, with these logits."""
    if params.temperature == 0:
        return int(possible[logits.argmax()])
    weights = np.exp((logits.astype(np.float64) - logits.max()) / params.temperature)  # the likeliest weighs 1
    ids: Ids = np.arange(len(weights))
    for keep in FILTERS:
        ids = keep(weights, ids, params)
    # Inverse transform: the draw falls into each token's share of the unit interval with its probability.
    cumulative = weights[ids].cumsum()
    return int(possible[ids[min(int(cumulative.searchsorted(draw * cumulative[-1], side="right")), len(ids) - 1)]])


def check(logits: Floats) -> None:
    """Raise where the likeliest is not a number, or not a finite one; -inf elsewhere only rules a token out."""
    if not np.isfinite(logits.max(axis=-1)).all():
        raise BitNetError("The model computed logits that are not numbers.", "The model file is probably damaged.")


def biased(logits: Floats, bias: tuple[tuple[int, float], ...]) -> Floats:
    """The sum of its biases is added to each logit, in the order given."""
    logits = logits.copy()
    for token, value in bias:
        logits[token] += np.float32(value)
    return logits


def penalize(logits: Floats, params: SamplingParams, prompt: Mapping[int, int], output: Mapping[int, int]) -> Floats:
    """Repetition penalty on everything seen (arXiv:1909.05858), presence and frequency on the output (OpenAI)."""
    logits = logits.copy()
    seen = np.fromiter({**prompt, **output}, np.intp)
    logits[seen] = np.where(
        logits[seen] > 0, logits[seen] / params.repetition_penalty, logits[seen] * params.repetition_penalty
    )
    ids, counts = np.fromiter(output.keys(), np.intp), np.fromiter(output.values(), np.float32)
    logits[ids] -= params.presence_penalty + params.frequency_penalty * counts
    return logits


def keep_top_k(weights: Floats, ids: Ids, params: SamplingParams) -> Ids:
    return largest(weights, ids, params.top_k) if params.top_k else ids


def keep_top_p(weights: Floats, ids: Ids, params: SamplingParams) -> Ids:
    if params.top_p >= 1:
        return ids
    goal = params.top_p * weights[ids].sum()
    for count in (256, len(ids)):  # the nucleus is nearly always small: rank a part first
        ranked = by_weight(weights, largest(weights, ids, count))
        cumulative = weights[ranked].cumsum()
        if cumulative[-1] >= goal:
            break
    return ranked[: int(cumulative.searchsorted(goal)) + 1]


def keep_min_p(weights: Floats, ids: Ids, params: SamplingParams) -> Ids:
    return ids[weights[ids] >= params.min_p * weights[ids].max()] if params.min_p else ids


FILTERS = (keep_top_k, keep_top_p, keep_min_p)  # applied in this order


def largest(weights: Floats, ids: Ids, count: int) -> Ids:
    """The `count` of `ids` that weigh most; of equals, those with the lowest ids. The lightest of them come last, also
    where there are no more than `count`: a screened head gives the same order."""
    if count > len(ids):
        return ids
    among = weights[ids]
    threshold = np.partition(among, -count)[-count]
    above = ids[among > threshold]
    return np.concatenate([above, ids[among == threshold][: count - len(above)]])


def by_weight(weights: Floats, ids: Ids) -> Ids:
    """Heaviest first, equals by id."""
    return ids[np.lexsort((ids, -weights[ids]))]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a token before penalties and filters, with the likeliest alternatives."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def kl_divergence(p: Floats, q: Floats) -> Floats:
    """KL(p || q) in nats, rows (..., vocab) of log-probabilities -> (...); not below 0, where rounding may leave it."""
    result: Floats = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0)
    return result


def log_softmax(logits: Floats) -> Floats:
    """(..., vocab) -> (..., vocab), in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def token_logprob(logits: Floats, token: int, top: int) -> TokenLogprob:
    """Of one row (vocab,)."""
    logs = log_softmax(logits)
    best = by_weight(logs, largest(logs, np.arange(len(logs)), top)) if top else ()
    return TokenLogprob(token, float(logs[token]), tuple((int(i), float(logs[i])) for i in best))
