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
from bitnet.monitor.screen import duration, screen, ticks
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


def shown(watch: Watch) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(screen(watch))
    return console.file.getvalue()


def test_what_is_not_told_is_said_to_be_so(serve: Serve) -> None:
    served = ServedMetrics(start=0)
    served.tell("cpu_usage_ratio", 0.5, core="0")
    serve(served)
    watch = Watch("here")
    watch.ask()
    watch.ask()
    text = shown(watch)
    assert "7.0 tok/s" in text and "core 0" in text and "50 %" in text
    temperature, power = (next(line for line in text.splitlines() if name in line) for name in ("temperature", "power"))
    assert "not reported" in temperature and "not reported" in power


def test_a_server_that_goes_keeps_its_last_figures_and_says_since_when(serve: Serve) -> None:
    served = ServedMetrics(start=0)
    served.set("requests_running", 3)
    serve(served, None, None, ServedMetrics(start=1001))
    watch = Watch("here")
    watch.ask()
    since = watch.ask().since
    assert watch.ask().since == since and since is not None
    assert "Nobody answers." in shown(watch) and "3 running" in shown(watch)
    watch.ask()
    assert "started anew" in shown(watch)


def test_nothing_ever_answered(serve: Serve) -> None:
    serve(None)
    watch = Watch("here")
    watch.ask()
    assert "Nobody answers." in shown(watch)


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
