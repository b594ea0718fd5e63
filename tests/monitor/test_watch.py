"""`bitnet top` and what it follows: a server that comes, goes and comes again."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console
from served_metrics import ServedMetrics

import bitnet.monitor.watch as watch_module
from bitnet.cli.main import main
from bitnet.errors import ScrapeError
from bitnet.monitor.reader import parse
from bitnet.monitor.screen import Screen, duration, ticks
from bitnet.monitor.watch import Watch

Serve = Callable[[Any], None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Let the servers that are asked answer with these, one after the other; None is no answer."""

    def answers(*served: ServedMetrics | None) -> None:
        waiting, now = list(served), [1000.0]

        def scrape(*arguments: object) -> object:
            now[0] += 1.0
            found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
            if found is None:
                raise ScrapeError("Nobody answers.", "Start one.")
            found.count("generation_tokens", 7)
            return parse(found.text(), now[0])

        monkeypatch.setattr(watch_module, "scrape", scrape)

    return answers


def shown(watch: Watch, width: int = 120, height: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(Screen(watch.state, watch.url, height))
    return console.file.getvalue()


def watching(asks: int) -> Watch:
    watch = Watch("here")
    for _ in range(asks):
        watch.ask()
    return watch


def row(name: str, text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name))


def test_what_is_not_told_is_said_to_be_so(serve: Serve) -> None:
    served = ServedMetrics(start=0)
    served.tell("cpu_usage_ratio", 0.5, core="0")
    serve(served)
    text = shown(watching(2))
    assert "7.0 tok/s" in row("generated", text) and "50 %" in row("  core 0", text)
    assert all("not reported" in row(name, text) for name in ("temperature", "power", "frequency"))


def test_what_is_told_is_shown_the_highest_first(serve: Serve) -> None:
    served = ServedMetrics(start=0)
    for name, value in (("board", 40), ("package", 71.26)):
        served.tell("temperature_celsius", value, sensor=name)
    served.tell("power_watts", 14.5, domain="package-0")
    served.tell("cpu_frequency_hertz", 8e8, core="0")
    served.tell("cpu_frequency_hertz", 2.4e9, core="1")
    served.tell("throttled", 1, reason="under-voltage")
    served.tell("battery_charge_ratio", 0.63, battery="BAT0")
    serve(served)
    text = shown(watching(1))
    assert row("temperature", text).split(maxsplit=1)[1].strip() == "package 71.3 °C, board 40.0 °C"
    assert "package-0 14.5 W" in text and "0.80 to 2.40 GHz" in text
    assert "under-voltage" in row("slowed down", text) and "63 %" in row("BAT0", text)


def test_a_server_that_goes_keeps_its_last_figures_and_says_since_when(serve: Serve) -> None:
    served = ServedMetrics(start=0)
    served.set("requests_running", 3)
    serve(served, None, None, ServedMetrics(start=1001))
    watch = watching(2)
    since = watch.state.since
    assert watch.ask().since == since and since is not None
    text = shown(watch)
    assert "Nobody answers." in text and "Start one." in text and "3 running" in text
    watch.ask()
    assert "started anew" in shown(watch)


def test_nothing_ever_answered(serve: Serve) -> None:
    serve(None)
    assert "Nobody answers." in shown(watching(1))


@pytest.mark.parametrize("width, height", [(20, 4), (40, 12), (80, 24), (200, 60)])
def test_the_screen_keeps_to_its_size(serve: Serve, width: int, height: int) -> None:
    served = ServedMetrics(start=0)
    for core in range(64):
        served.tell("cpu_usage_ratio", core / 64, core=str(core))
        served.tell("temperature_celsius", core, sensor=f"a sensor with a long name {core}")
    serve(served)
    lines = shown(watching(30), width, height).splitlines()
    assert len(lines) <= height and max(map(len, lines)) <= width and "0.1.0" in lines[0] + "0.1.0" * (width < 40)
    assert ("▁▁▂" in shown(watching(3), 100, 24)) and ("core 63" in shown(watching(3), 100, 200))


def test_a_server_does_not_steer_the_terminal(serve: Serve) -> None:
    served = ServedMetrics(start=0)
    served.tell("temperature_celsius", 50, sensor="\x1b[2J\x1b]0;owned\x07")
    serve(served)
    assert "\x1b" not in shown(watching(1)) and "\x07" not in shown(watching(1))


def test_one_look_is_one_object_of_json(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    served = ServedMetrics(start=0)
    serve(served)
    with pytest.raises(SystemExit) as end:
        main(["top", "--once", "--json", "--interval", "0.1"])
    found = json.loads(capsys.readouterr().out)
    assert end.value.code == 0 and found["generation_rate"] == 7 and found["power"] == {}


def test_a_look_at_nothing_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["top", "--once", "--url", "http://127.0.0.1:1"])
    said = capsys.readouterr().err
    assert end.value.code == 1 and "does not answer" in said and "fix:" in said and "Traceback" not in said


def test_ticks_are_heights_with_gaps() -> None:
    assert ticks([0, None, 7, 3.5]) == "▁ █▅"
    assert ticks([None]) == ticks([0.0]) == ""
    assert ticks([0.5, 2.0], top=1.0) == "▅█"


@pytest.mark.parametrize("seconds, text", [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text
