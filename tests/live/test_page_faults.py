"""The pages beside a server that says what a test wants: thoughts, streams that break off, sensors of all kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import serving
from conftest import Open
from served_metrics import BUCKETS, ServedMetrics
from stand_in_server import Answer, StandIn

from bitnet.monitor.history import History
from bitnet.monitor.reader import parse

DONE = ".message.assistant:last-child[aria-busy=false]"


@pytest.fixture
def server(browser: Any) -> Iterator[StandIn]:
    found = StandIn()
    found.start()
    yield found
    found.stop()


@pytest.fixture
def chat(server: StandIn, visit: Open) -> Any:
    page = visit(server.url)
    page.wait_for_selector("#model option", state="attached")
    return page


def ask(page: Any, answer: Answer, server: StandIn) -> None:
    server.answers.append(answer)
    page.fill("#prompt", "Why?")
    page.press("#prompt", "Enter")
    page.wait_for_selector(DONE)


def test_thoughts_are_folded_away_and_not_sent_back(server: StandIn, chat: Any) -> None:
    ask(chat, Answer("Because.", reasoning="The user asks why. Let me think."), server)
    assert chat.inner_text(f"{DONE} .prose") == "Because." and not chat.is_visible(f"{DONE} .thought div")
    chat.click(f"{DONE} .thought summary")
    assert chat.inner_text(f"{DONE} .thought div") == "The user asks why. Let me think."
    ask(chat, Answer(), server)
    assert [each["content"] for each in server.requests[1]["messages"]] == ["Why?", "Because.", "Why?"]


@pytest.mark.parametrize(
    "breaks, said", [("cut", "The connection broke off."), ("The engine failed.", "The engine failed.")]
)
def test_what_came_before_a_stream_broke_off_is_kept(server: StandIn, chat: Any, breaks: str, said: str) -> None:
    ask(chat, Answer("So far so good", breaks=breaks), server)
    assert chat.inner_text(f"{DONE} .prose") == "So far so good"
    assert said in chat.inner_text(f"{DONE} .failure")
    chat.reload()
    chat.click(".entry .name")
    assert chat.inner_text(f"{DONE} .prose") == "So far so good" and said in chat.inner_text(f"{DONE} .failure")


def test_leaving_the_page_ends_the_stream_and_keeps_what_came(server: StandIn, chat: Any) -> None:
    server.answers.append(Answer("word " * 1000, pause=0.05))
    chat.fill("#prompt", "Why?")
    chat.press("#prompt", "Enter")
    chat.wait_for_selector(".message.assistant .prose:not(:empty)")
    chat.reload()
    serving.wait_until(lambda: server.gone == 1)
    chat.click(".entry .name")
    assert chat.inner_text(".message.assistant .prose").startswith("word")


def test_two_windows_keep_each_others_conversations(server: StandIn, chat: Any) -> None:
    other = chat.context.new_page()
    other.goto(server.url)
    other.wait_for_selector("#model option", state="attached")
    ask(chat, Answer("One."), server)
    ask(other, Answer("Two."), server)
    chat.reload()
    assert chat.locator(".entry").count() == 2


def test_a_text_that_is_hard_to_parse_does_not_hold_the_page(chat: Any) -> None:
    """Each would take minutes if the work grew with the square of the text."""
    for text in (
        "*" * 50_000,
        "[" * 50_000,
        "`" * 50_001,
        "> " * 20_000,
        "- " * 20_000,
        "|-" * 20_000,
        "**a " * 20_000,
    ):
        script = (
            '(text) => import("/page/markdown.js").then(({ render }) => render(document.createElement("div"), text))'
        )
        chat.evaluate(script, text)


def cards(page: Any) -> dict[str, str]:
    found = page.locator(".card")
    return {each.get_attribute("aria-label"): each.inner_text() for each in found.all()}


def test_the_dashboard_tells_what_the_machine_tells(server: StandIn, visit: Open) -> None:
    told = server.metrics
    for core in range(4):
        told.tell("cpu_usage_ratio", core / 4, core=str(core))
    for name, value in (("memory_used_bytes", 3 * 2**30), ("memory_total_bytes", 8 * 2**30)):
        told.tell(name, value)
    told.tell("temperature_celsius", 61.5, sensor="cpu_thermal")
    told.tell("temperature_celsius", 40, sensor="nvme")
    told.tell("power_watts", 6.5, domain="package-0")
    told.tell("power_watts", 4, domain="package-0/core")
    told.tell("throttled", 1, reason="under-voltage")
    told.set("kv_cache_usage_ratio", 0.42)
    server.slots = [
        {"id": 0, "id_task": 7, "model": "tiny", "is_processing": True, "n_prompt_tokens": 100,
         "n_prompt_tokens_processed": 100, "n_prompt_tokens_cache": 64, "n_decoded": 12}
    ]  # fmt: skip
    page = visit(f"{server.url}/dashboard")
    page.wait_for_selector(".card table")
    found = cards(page)
    assert "42 %" in found["KV cache"] and "3 GiB" in found["Memory"] and "of 8 GiB" in found["Memory"]
    assert "61.5\n°C, the hottest" in found["Temperature"] and "nvme" in found["Temperature"]
    assert "Slowed down: under-voltage" in found["Temperature"]
    assert found["Power"].split("\n")[1] == "6.50"  # a package holds its parts
    assert "Core 3" in found["Processors"] and "75 %" in found["Processors"]
    assert found["Requests in flight"].split("\n")[-1].split() == [
        "7",
        "tiny",
        "writing",
        "100",
        "of",
        "100",
        "64",
        "12",
    ]


def test_the_dashboard_guesses_nothing(server: StandIn, visit: Open) -> None:
    page = visit(f"{server.url}/dashboard")
    page.wait_for_selector("#state[data-state=live]")
    serving.wait_until(lambda: "Not reported" in cards(page)["Power"])
    found = cards(page)
    assert all("Not reported" in found[name] for name in ("Power", "Temperature", "Processors", "Memory"))
    assert "No requests in the last minute" in found["Time to first token"]


def test_the_dashboard_says_that_a_server_is_down_and_was_started_anew(server: StandIn, visit: Open) -> None:
    page = visit(f"{server.url}/dashboard")
    page.wait_for_selector("#state[data-state=live]")
    server.stop()
    page.wait_for_selector("#state[data-state=down]")
    assert "has not answered since" in page.inner_text("#state")
    server.metrics = ServedMetrics()
    server.start()
    page.wait_for_selector("#state[data-state=new]")
    assert "started anew" in page.inner_text("#state")


def test_the_dashboard_asks_for_the_key(server: StandIn, visit: Open) -> None:
    server.key = "sesame"
    page = visit(f"{server.url}/dashboard")
    page.fill("#unlock input", "sesame")
    page.press("#unlock input", "Enter")
    page.wait_for_selector("#state[data-state=live]")
    assert not page.is_visible("#unlock")


FIGURES = """async (texts) => {
  const { History, parse, Snapshot } = await import("/page/metrics.js");
  const history = new History(300);
  texts.forEach((text, second) => history.add(new Snapshot(parse(text), second)));
  const name = "bitnet_time_to_first_token_seconds";
  return [
    history.rate("bitnet_generation_tokens_total", 5),
    ...[0.5, 0.95].map((q) => history.percentile(q, name, 60)),
    history.restarts.length,
    history.last.by("bitnet_temperature_celsius", "sensor"),
  ];
}"""


def test_the_dashboard_computes_as_bitnet_top_does(chat: Any) -> None:
    texts = []
    for start in (1, 2):  # it is started anew once
        served = ServedMetrics(start=start)
        served.tell("temperature_celsius", 51.25, sensor='odd "name"\n\\')
        for second in range(90):
            served.count("generation_tokens", 7 * second + start)
            served.observe("time_to_first_token", *[BUCKETS[(second + each) % len(BUCKETS)] * 0.7 for each in range(9)])
            texts.append(served.text())
    history = History()
    for second, text in enumerate(texts):
        ours = history.add(parse(text, float(second)))
    latency = ours.time_to_first_token
    expected = [ours.generation_rate, latency["p50"], latency["p95"], 1]
    *numbers, sensors = chat.evaluate(FIGURES, texts)
    assert numbers == pytest.approx(expected) and sensors == [['odd "name"\n\\', 51.25]]
