"""One setting after the other: its values take turns, and one stays that is faster beyond doubt."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bitnet.tune.knobs import Knob
from bitnet.tune.options import Options

ROUNDS = (3, 7)  # at least, at most
GAIN = 0.02  # of the time, that a value must save
WINS = 0.8  # of the rounds, in which it must be the faster


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of one prompt token and of one generated token."""

    prompt: float
    decode: float

    @property
    def seconds(self) -> float:
        """Of a typical request: 512 tokens read, 128 written."""
        return 512 * self.prompt + 128 * self.decode


class Meter(Protocol):
    """Measures the model with given options; may take a while to prepare for options it has not seen."""

    def __call__(self, options: Options) -> Speed: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """A value of a setting: its median speed (None: no time was left), and its time in each round by that of the value
    in use, below 1 where it was faster.
    """

    name: str
    value: Any
    speed: Speed | None
    ratios: tuple[float, ...]
    kept: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The options to use, and the speed with those of the start and with these."""

    options: Options
    before: Speed
    after: Speed


class Clock:
    """How much of a budget of seconds is left."""

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._end = now, now() + seconds

    @property
    def left(self) -> float:
        return self._end - self._now()

    def part(self, seconds: float) -> Clock:
        return Clock(seconds, self._now)


def search(
    knobs: Sequence[Knob],
    start: Options,
    meter: Meter,
    clock: Clock,
    progress: Callable[[str], None] = lambda doing: None,
) -> tuple[Options, list[Trial]]:
    """The options that were found best, and every value that was tried, in order."""
    best, trials = start, []
    for number, knob in enumerate(knobs):
        values = knob.values(best)
        if len(values) > 1:
            progress(f"{knob.name}: {', '.join(map(str, values))}")
            share = clock.left / (len(knobs) - number)
            best, tried = judged(knob.name, values, take_turns(values, meter, clock.part(share)))
            trials += tried
    return best, trials


def confirm(
    start: Options, best: Options, meter: Meter, clock: Clock, progress: Callable[[str], None] = lambda doing: None
) -> Outcome:
    """Both once more, for of many values tried the best looks better than it is; `start` stays where that was all."""
    progress("the whole")
    rounds = take_turns({"start": start, "best": best}, meter, clock, whatever_it_takes=True)
    before, after = median(rounds["start"]), median(rounds["best"])
    better = best != start and wins(compared(rounds["best"], rounds["start"]))
    return Outcome(best, before, after) if better else Outcome(start, before, before)


def take_turns(
    options: Mapping[Any, Options], meter: Meter, clock: Clock, whatever_it_takes: bool = False
) -> dict[Any, list[Speed]]:
    """Round after round until the time is up, each beginning with another one.

    ROUNDS at least and at most; nothing where the time will not do for the least, unless it must.
    """
    samples: dict[Any, list[Speed]] = {name: [] for name in options}
    longest = 0.0
    for done in range(ROUNDS[1]):
        before = clock.left
        if done >= ROUNDS[0] and before < longest:
            break
        for name in rotated(list(options), done):
            samples[name].append(meter(options[name]))
        longest = max(longest, before - clock.left)
        if done == 0 and clock.left < (ROUNDS[0] - 1) * longest and not whatever_it_takes:
            return {name: [] for name in options}
    return samples


def judged(
    name: str, options: Mapping[Any, Options], samples: Mapping[Any, Sequence[Speed]]
) -> tuple[Options, list[Trial]]:
    """The options of the value that stays: the first, unless another wins."""
    present, *others = options
    if not samples[present]:
        return options[present], [Trial(name, value, None, (), value == present) for value in options]
    ratios = {value: compared(samples[value], samples[present]) for value in options}
    winners = [value for value in others if wins(ratios[value])]
    kept = min(winners, key=lambda value: statistics.median(ratios[value]), default=present)
    return options[kept], [
        Trial(name, value, median(samples[value]), ratios[value], value == kept) for value in options
    ]


def compared(these: Sequence[Speed], those: Sequence[Speed]) -> tuple[float, ...]:
    return tuple(a.seconds / b.seconds for a, b in zip(these, those, strict=True))


def wins(ratios: Sequence[float]) -> bool:
    """Faster by more than a little, and in nearly every round: noise seldom does both."""
    faster = sum(ratio < 1 for ratio in ratios)
    return statistics.median(ratios) <= 1 - GAIN and faster >= WINS * len(ratios)


def median(samples: Sequence[Speed]) -> Speed:
    return Speed(statistics.median(s.prompt for s in samples), statistics.median(s.decode for s in samples))


def rotated(values: list[Any], by: int) -> list[Any]:
    by %= len(values)
    return values[by:] + values[:by]
