"""When requests come, and how long they and their answers are: drawn before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ParameterError

KINDS: dict[str, Callable[..., NDArray[np.float64]]] = {
    "uniform": lambda rng, count, low, high: rng.uniform(low - 0.5, high + 0.5, count),
    "normal": lambda rng, count, mean, deviation: rng.normal(mean, deviation, count),
    "lognormal": lambda rng, count, median, sigma: median * rng.lognormal(0, sigma, count),
    "exponential": lambda rng, count, mean: rng.exponential(mean, count),
}
KNOWN = '"128", "64-256", "normal:128,32", "lognormal:128,0.8" (median, sigma) or "exponential:128"'


@dataclass(frozen=True, slots=True)
class Lengths:
    """Numbers of tokens, 1 and more."""

    kind: str
    numbers: tuple[float, ...]

    @staticmethod
    def parse(text: str) -> Lengths:
        kind, colon, numbers = text.strip().partition(":")
        if not colon:
            low, _, high = kind.partition("-")
            kind, numbers = "uniform", f"{low},{high or low}"
        try:
            found = Lengths(kind, tuple(map(float, numbers.split(","))))
            sound = all(0 <= number < 1 << 24 for number in found.numbers) and found.draw(np.random.default_rng(0), 1)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ParameterError(f"{text!r} is no distribution of lengths.", f"Known: {KNOWN}.") from None
        if not sound or (kind == "uniform" and not 1 <= found.numbers[0] <= found.numbers[1]):
            raise ParameterError(f"{text!r} gives no lengths from 1 up.", f"Known: {KNOWN}.")
        return found

    def draw(self, rng: np.random.Generator, count: int) -> NDArray[np.int64]:
        drawn: NDArray[np.int64] = np.rint(KINDS[self.kind](rng, count, *self.numbers)).astype(np.int64)
        return drawn.clip(1)


def arrivals(rate: float, burstiness: float, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Seconds from the first request to each. rate: requests a second; infinite: all at once.

    The times between them are drawn from a gamma distribution of that shape: 1 is a Poisson process, less comes in
    bursts, infinity is a constant rate.
    """
    if math.isinf(rate):
        return np.zeros(count)
    gaps = np.full(count, 1 / rate)
    if not math.isinf(burstiness):
        gaps = rng.gamma(burstiness, 1 / (rate * burstiness), count)
    times: NDArray[np.float64] = np.cumsum(gaps) - gaps[0]
    return times
