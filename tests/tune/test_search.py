"""The search finds what is faster, and only that, whatever the noise. Time is made up here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("bitnet._core")

from bitnet.tune import Options, knobs
from bitnet.tune.knobs import Knob, heads, threads, weights
from bitnet.tune.search import ROUNDS, Clock, Speed, confirm, search, take_turns, wins


class Meter:
    """Speeds by a rule, times a noise; the clock goes on by a second with every call."""

    def __init__(self, rule: Callable[[Options], float], noise: float = 0.0, seed: int = 0) -> None:
        self.rule, self.noise, self.random = rule, noise, np.random.default_rng(seed)
        self.calls: list[Options] = []

    def __call__(self, options: Options) -> Speed:
        self.calls.append(options)
        each = self.rule(options) * float(np.exp(self.noise * self.random.standard_normal()))
        return Speed(each / 100, each)

    def clock(self, seconds: float) -> Clock:
        return Clock(seconds, lambda: float(len(self.calls)))


def knob(name: str, *values: Any) -> Knob:
    """The present value, and these."""
    return Knob(name, lambda now: {value: replace(now, **{name: value}) for value in (getattr(now, name), *values)})


THREADS, HEAD, CHUNK = knob("threads", 1, 2, 4, 8), knob("head", "full"), knob("chunk", 64, 128)


def costs(options: Options) -> float:
    """Four threads are best; the full head is slow; the chunk does not matter."""
    return {0: 1.0, 1: 3.0, 2: 1.5, 4: 0.8, 8: 0.9}[options.threads] * (1.2 if options.head == "full" else 1)


def test_the_best_value_of_each_setting_is_kept() -> None:
    meter = Meter(costs)
    best, trials = search([THREADS, HEAD, CHUNK], Options(), meter, meter.clock(1000))
    assert best == Options(threads=4)
    assert [(t.name, t.value) for t in trials if t.kept] == [("threads", 4), ("head", "auto"), ("chunk", 512)]
    assert [t.value for t in trials if t.name == "threads"] == [0, 1, 2, 4, 8]


def test_a_setting_is_tried_on_top_of_what_was_found_before() -> None:
    meter = Meter(costs)
    search([THREADS, HEAD], Options(), meter, meter.clock(1000))
    assert {options.threads for options in meter.calls if options.head == "full"} == {4}


@pytest.mark.parametrize("seed", range(8))
def test_noise_hides_no_large_difference(seed: int) -> None:
    meter = Meter(lambda options: 1.0 if options.threads == 2 else 2.0, noise=0.1, seed=seed)
    best, _ = search([THREADS], Options(), meter, meter.clock(1000))
    assert best.threads == 2


def test_noise_alone_seldom_wins_and_is_found_out() -> None:
    changed = 0
    for seed in range(100):
        meter = Meter(lambda options: 1.0, noise=0.1, seed=seed)
        best, _ = search([CHUNK], Options(), meter, meter.clock(1000))
        changed += confirm(Options(), best, meter, meter.clock(1000)).options != Options()
    assert changed <= 3


def test_values_take_turns_and_none_is_always_the_first() -> None:
    meter = Meter(costs)
    options = {value: Options(threads=value) for value in (0, 1, 2)}
    samples = take_turns(options, meter, meter.clock(1000))
    assert [len(each) for each in samples.values()] == [ROUNDS[1]] * 3
    assert [call.threads for call in meter.calls[:9]] == [0, 1, 2, 1, 2, 0, 2, 0, 1]


def test_the_time_is_kept() -> None:
    for seconds in (5, 20, 60):
        meter = Meter(costs)
        search([THREADS, HEAD, CHUNK], Options(), meter, meter.clock(seconds))
        assert len(meter.calls) <= seconds + 5 + 2 + 3  # a round of each setting, at the worst


def test_without_time_nothing_changes_and_it_is_said() -> None:
    meter = Meter(costs)
    best, trials = search([THREADS, HEAD, CHUNK], Options(), meter, meter.clock(0))
    assert best == Options() and all(trial.speed is None for trial in trials)


def test_confirming_measures_even_without_time() -> None:
    meter = Meter(costs)
    outcome = confirm(Options(), Options(threads=4), meter, meter.clock(0))
    assert outcome.options == Options(threads=4)
    assert (outcome.before.decode, outcome.after.decode) == (1.0, 0.8)
    assert len(meter.calls) == 2 * ROUNDS[0]


def test_what_cannot_be_confirmed_is_dropped() -> None:
    meter = Meter(lambda options: 1.0)
    assert confirm(Options(), Options(threads=4), meter, meter.clock(100)).options == Options()


@pytest.mark.parametrize(
    "ratios, won",
    [
        ((0.5, 0.5, 0.5), True),
        ((0.99, 0.99, 0.99), False),
        ((0.5, 0.5, 1.1), False),
        ((0.9, 0.9, 0.9, 0.9, 1.5), True),
        ((0.9, 0.9, 0.9, 1.1, 1.5), False),
        ((1.0, 1.0, 1.0), False),
    ],
)
def test_winning_takes_a_clear_gain_in_nearly_every_round(ratios: tuple[float, ...], won: bool) -> None:
    assert wins(ratios) is won


def test_a_setting_without_other_values_is_left_alone() -> None:
    meter = Meter(costs)
    best, trials = search([knob("threads"), knob("head", "auto")], Options(), meter, meter.clock(100))
    assert (best, trials, meter.calls) == (Options(), [], [])


def test_threads_are_tried_up_to_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    core = pytest.importorskip("bitnet._core")
    monkeypatch.setattr(core, "default_threads", lambda: 6)
    monkeypatch.setattr(core, "allowed_cpus", lambda: list(range(12)))
    tried = threads(Options())
    assert list(tried) == [6, 1, 2, 4, 5, 8, 12] and tried[6] == Options() and tried[8] == Options(threads=8)
    assert next(iter(threads(Options(threads=4)))) == 4


def test_the_full_head_is_tried_where_there_is_a_screen() -> None:
    assert heads(Options(), screened=False) == {"full": Options()}
    assert heads(Options(), screened=True) == {"screen": Options(), "full": Options(head="full")}
    full = Options(head="full")
    assert heads(full, screened=True) == {"full": full, "screen": Options(head="screen")}


def test_all_packings_are_tried_that_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = weights(Options(), "1.6bit", 800)
    assert {name: options.packing for name, options in tried.items()} == {
        "1.6bit": "auto", "2bit": "2bit", "tl1": "tl1", "tl2": "tl2"
    }  # fmt: skip
    assert next(iter(weights(Options(kernel="tl1"), "2bit", 800).items())) == ("tl1", Options(kernel="tl1"))
    assert weights(Options(), "1.6bit, 2bit", 800) == {"1.6bit, 2bit": Options()}
    monkeypatch.setattr(knobs, "fits", lambda needed: needed <= 160)
    assert list(weights(Options(), "2bit", 800)) == ["2bit", "1.6bit"]


def test_the_users_choice_goes_before_the_profiles() -> None:
    tuned = Options(threads=3, head="full", chunk=128)
    assert tuned.under({}) == tuned.under({"threads": 0, "head": "auto", "kv": "f16"}) == tuned
    assert tuned.under({"threads": 2, "head": "screen"}) == Options(threads=2, head="screen", chunk=128)
    assert tuned.under({"chunk": 512}).chunk == 512


def test_a_kernel_that_the_user_chose_drops_the_profiles_weights_and_the_other_way_round() -> None:
    assert Options(weights="1.6bit").under({"kernel": "tl1"}) == Options(kernel="tl1")
    assert Options(kernel="tl2").under({"weights": "2bit", "kernel": "auto"}) == Options(weights="2bit")
    assert Options(kernel="tl2").under({"weights": "auto"}) == Options(kernel="tl2")
