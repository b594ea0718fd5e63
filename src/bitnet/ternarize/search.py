"""The search for thresholds: for each projection the alpha whose outputs differ least on what it really reads.

A projection is judged by |X W' - X (c T)'| / |X W'|, X being rows of its inputs and T the ternary matrix of an
alpha. The best c, one number or one for each row of W, is that of least squares and known in closed form. The inputs
are taken in float: that the engine rounds them to int8 is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet.quant.threshold import Group, Rule, ternarize
from bitnet.ternarize.checkpoint import Choice

Floats = NDArray[np.float32]
GRID = tuple(round(0.1 * step, 1) for step in range(1, 17))  # alphas tried first
MOST_ALPHA = 100.0  # where weights have long tails the best one lies far beyond the grid
HALVINGS = 3  # of the distances from the best to its neighbours
FACTORS = (0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.4)  # of all alphas together


@dataclass(frozen=True, slots=True)
class Point:
    """One alpha of one projection. sparsity: the share of zeros. error: of the outputs, relative."""

    alpha: float
    sparsity: float
    error: float


@dataclass(frozen=True, slots=True)
class Found:
    """points: what was tried, by alpha. best: the one with the least error."""

    points: tuple[Point, ...]
    best: Point


class Outputs:
    """What a projection (n, k) makes of the inputs (rows, k), to compare ternary ones with."""

    def __init__(self, weight: Floats, inputs: Floats) -> None:
        self.weight, self.inputs = weight, inputs
        self.wanted = inputs @ weight.T  # (rows, n)

    def error(self, choice: Choice) -> float:
        """Of the outputs, relative, with the scales of `choice`."""
        return self._relative(self.wanted - self.inputs @ choice.apply(self.weight).dequantize().T)

    def _relative(self, difference: Floats) -> float:
        size = np.linalg.norm(self.wanted)
        return float(np.linalg.norm(difference) / size) if size else 0.0

    def fit(self, rule: Rule) -> tuple[Choice, Point]:
        """`rule` with the scales that fit the outputs best, and how well they fit."""
        made = ternarize(self.weight, rule)
        given = self.inputs @ made.dequantize().T
        axis = None if rule.group == "tensor" else 0
        both, own = (np.sum(given * other, axis=axis, dtype=np.float64) for other in (self.wanted, given))
        # A row that points away from what is wanted, or nowhere, keeps the rule's scale.
        factor = np.divide(both, own, out=np.ones_like(both), where=(both > 0) & (own > 0)).astype(np.float32)
        sparsity = float(1 - np.count_nonzero(made.codes) / made.codes.size)
        point = Point(rule.alpha, sparsity, self._relative(self.wanted - given * factor))
        return Choice(rule, factor), point


def search(outputs: Outputs, group: Group) -> Found:
    """The alpha of least output error: the best of a grid, which grows as long as its end is the best, then of ever
    closer neighbours."""
    tried: dict[float, Point] = {}

    def best_with(alphas: Sequence[float]) -> Point:
        for alpha in alphas:
            tried[alpha] = outputs.fit(Rule("threshold", alpha, group))[1]
        return min(tried.values(), key=lambda point: (point.error, point.alpha))

    best = best_with(GRID)
    while best.alpha == max(tried) < MOST_ALPHA:
        best = best_with([1.25 * best.alpha])
    for _ in range(HALVINGS):
        alphas = sorted(tried)
        at = alphas.index(best.alpha)
        best = best_with([(best.alpha + near) / 2 for near in alphas[max(0, at - 1) : at + 2] if near != best.alpha])
    return Found(tuple(tried[alpha] for alpha in sorted(tried)), best)


@dataclass(frozen=True, slots=True)
class Trial:
    """A whole model made ternary in one way. error: the mean output error of its projections, None where not measured.

    factor: of all tuned alphas; None for a rule that was not tuned.
    """

    name: str
    choices: dict[str, Choice]
    sparsity: float
    error: float
    perplexity: float
    factor: float | None = None


def sweep(
    names: Sequence[str],
    outputs: Callable[[str], Outputs],
    perplexity: Callable[[dict[str, Choice]], float],
    group: Group,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Found], list[Trial]]:
    """Tune every projection of `names`, then try the tuned alphas times each of FACTORS, and the plain rules, as whole
    models.

    outputs: of a projection, made when asked for. perplexity: of the model that such choices make, on held-out text.
    """
    found: dict[str, Found] = {}
    for done, name in enumerate(names):
        progress(f"tuning {name}  {100 * done // len(names)} %")
        found[name] = search(outputs(name), group)
    rules = [Rule("absmean", group=group), Rule("threshold", 0.7, group), Rule("optimal", group=group)]
    trials = []
    for rule in rules:
        progress(f"measuring {rule}")
        trials.append(trial(str(rule), dict.fromkeys(names, rule), outputs, perplexity))
    for factor in FACTORS:
        progress(f"measuring the tuned thresholds times {factor:g}")
        tuned = {name: Rule("threshold", found[name].best.alpha * factor, group) for name in names}
        trials.append(trial(f"tuned × {factor:g}", tuned, outputs, perplexity, factor))
    return found, trials


def trial(
    name: str,
    rules: dict[str, Rule],
    outputs: Callable[[str], Outputs],
    perplexity: Callable[[dict[str, Choice]], float],
    factor: float | None = None,
) -> Trial:
    """Tuned rules (those with a factor) take the scales that fit the outputs; the others keep their own."""
    choices: dict[str, Choice] = {}
    errors, zeros, weights = [], 0.0, 0
    for each, rule in rules.items():
        made = outputs(each)
        fitted, point = made.fit(rule)
        choices[each] = fitted if factor is not None else Choice(rule)
        errors.append(point.error if factor is not None else made.error(Choice(rule)))
        zeros, weights = zeros + point.sparsity * made.weight.size, weights + made.weight.size
    return Trial(name, choices, zeros / weights, float(np.mean(errors)), perplexity(choices), factor)
