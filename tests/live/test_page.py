"""The chat page in a browser, at `bitnet serve` with the built-in model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import serving
from conftest import Open, Served, served

from bitnet.api import builtin_model

QUESTION = "Tell me a story about a brave girl."
ANSWER = ".message.assistant"
DONE = f"{ANSWER}:last-child[aria-busy=false]"


@pytest.fixture(scope="module")
def server(browser: Any) -> Iterator[Served]:
    """Starts only where there is a browser."""
    with served() as process:
        yield process


@pytest.fixture(scope="module")
def slow(browser: Any) -> Iterator[Served]:
    """One that takes its time for an answer, and answers one at a time."""
    with served("--backend", "reference", "--parallel", "1", "--queue-size", "0") as process:
        yield process


@pytest.fixture
def page(server: Served, visit: Open) -> Any:
    return opened(visit, server.url)


def opened(visit: Open, url: str, **options: Any) -> Any:
    found = visit(url, **options)
    found.wait_for_selector("#model option", state="attached")
    return found


def ask(page: Any, text: str = QUESTION) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def answer(page: Any, text: str = QUESTION) -> str:
    ask(page, text)
    page.wait_for_selector(DONE)
    return page.inner_text(f"{DONE} .prose")


def set_sampling(page: Any, **values: float) -> None:
    page.click("#open-settings")
    for name, value in values.items():
        page.fill(f"#sampling [name={name}]", str(value))
    page.click("#settings .strong")


def texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def requests_of(page: Any) -> list[dict[str, Any]]:
    """Those for answers, as they are sent from now on."""
    found: list[dict[str, Any]] = []
    page.on("request", lambda each: found.append(each.post_data_json) if each.url.endswith("/completions") else None)
    return found


def squeezed(text: str) -> str:
    return " ".join(text.split())


def test_an_answer_is_that_of_the_api_and_tells_its_numbers(server: Served, page: Any) -> None:
    set_sampling(page, temperature=0, seed=7)
    sent = requests_of(page)
    shown = answer(page)
    body = {**sent[0], "stream": False}
    del body["stream_options"]
    found = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=serving.PATIENCE).json()
    assert squeezed(shown) == squeezed(found["choices"][0]["message"]["content"])
    assert body["temperature"] == 0 and body["seed"] == 7
    tokens, prompt = found["usage"]["completion_tokens"], found["usage"]["prompt_tokens"]
    numbers = rf"[\d.,]+ tok/s · {tokens} tokens · first after .* · prompt {prompt}\b.* % of the context"
    assert re.search(numbers, squeezed(page.inner_text(f"{DONE} .stats")))


def test_escape_stops_the_answer_on_the_server_too(slow: Served, visit: Open) -> None:
    page = opened(visit, slow.url)
    ask(page)
    written = page.locator(f"{ANSWER}[aria-busy=true] .prose:not(:empty)")
    early = written.inner_text()
    serving.wait_until(lambda: len(written.inner_text()) > len(early))  # it streams
    page.keyboard.press("Escape")
    page.wait_for_selector(DONE)
    assert "Stopped." in page.inner_text(DONE) and page.is_visible("#send")
    serving.wait_until(lambda: slow.metric("bitnet_requests_running") == 0)
    serving.wait_until(lambda: slow.metric('bitnet_requests_total{model="stories",outcome="abort"}') == 1)


def test_a_question_can_be_asked_anew_and_that_taken_back(page: Any) -> None:
    set_sampling(page, temperature=0)
    first = answer(page)
    answer(page, "And a dog?")
    page.hover(".message.user >> nth=0")
    page.click(".message.user >> nth=0 >> [aria-label=Edit]")
    page.fill(".editor textarea", "Tell me about a fish.")
    page.press(".editor textarea", "Enter")
    page.wait_for_selector(DONE)
    assert texts(page, ".message.user .text") == ["Tell me about a fish."]
    assert texts(page, f"{ANSWER} .prose") != [first]
    page.click("#toast button")
    assert texts(page, ".message.user .text") == [QUESTION, "And a dog?"]
    assert texts(page, f"{ANSWER} .prose")[0] == first


def test_editing_is_left_with_escape(page: Any) -> None:
    answer(page)
    page.click(".message.user [aria-label=Edit]")
    page.fill(".editor textarea", "something else")
    page.keyboard.press("Escape")
    assert texts(page, ".message.user .text") == [QUESTION]


def test_an_answer_is_given_again(page: Any) -> None:
    set_sampling(page, temperature=0)
    sent = requests_of(page)
    first = answer(page)
    page.click(f"{DONE} [aria-label='Answer again']")
    page.wait_for_selector(DONE)
    assert sent[1] == sent[0] and texts(page, f"{ANSWER} .prose") == [first]


def test_sampling_and_the_system_prompt_reach_the_server(page: Any) -> None:
    sent = requests_of(page)
    page.click("#open-settings")
    page.fill("#system", "You tell stories.")
    page.keyboard.press("Escape")
    set_sampling(page, max_completion_tokens=5, top_k=20, min_p=0.05)
    answer(page)
    assert "The limit of tokens was reached." in page.inner_text(DONE)
    assert " 5 tokens " in squeezed(page.inner_text(DONE))
    assert sent[0]["messages"][0] == {"role": "system", "content": "You tell stories."}
    assert (sent[0]["top_k"], sent[0]["min_p"], "temperature" in sent[0]) == (20, 0.05, False)
    page.click("#open-settings")
    page.fill("#sampling [name=top_p]", "7")  # out of range: marked, and not sent
    page.click("#reset")
    page.keyboard.press("Escape")
    answer(page, "Again.")
    assert sent[1].keys() == {"model", "messages", "stream", "stream_options"}


def test_conversations_are_kept_across_a_reload(page: Any) -> None:
    told = answer(page)
    page.fill("#title", "Brave")
    page.press("#title", "Tab")
    page.click("#new")
    answer(page, "And a dog?")
    page.reload()
    assert texts(page, ".entry .name") == ["And a dog?", "Brave"]
    page.click("text=Brave")
    assert texts(page, f"{ANSWER} .prose") == [told] and page.input_value("#title") == "Brave"
    assert "tok/s" in page.inner_text(f"{DONE} .stats")
    page.hover(".entry.now")
    page.click(".entry.now [aria-label='Delete the conversation']")
    assert texts(page, ".entry .name") == ["And a dog?"]
    page.click("#toast button")
    assert "Brave" in texts(page, ".entry .name")


def test_a_conversation_is_exported(page: Any) -> None:
    told = answer(page)
    found = {}
    for kind in ("md", "json"):
        page.click("#export summary")
        with page.expect_download() as download:
            page.click(f"[data-format={kind}]")
        found[kind] = download.value.path().read_text("utf-8")
    assert QUESTION in found["md"] and squeezed(told) in squeezed(found["md"])
    assert [each["role"] for each in json.loads(found["json"])["messages"]] == ["user", "assistant"]


MARKDOWN = """# Title
A **bold** word, `code`, [a link](https://example.org/x) and [not one](javascript:alert(1)).

- one
  1. inner
- two

| a | b |
|---|--:|
| 1 | 2 |

```python
x = "<b>"  # comment
```
<script>window.hacked = 1</script> <img src=x onerror="window.hacked = 2"> ![seen](https://example.org/pixel.png)
<https://example.org/?a="onmouseover=window.hacked=3> [x](data:text/html,hi) **<u>bold</u>**
"""


def test_markdown_is_drawn_and_markup_stays_text(page: Any) -> None:
    """The answer is put in by editing: the same way draws what a model writes."""
    ask(page, '<img src=x onerror="window.hacked = 4">')
    page.wait_for_selector(DONE)
    page.click(f"{DONE} [aria-label=Edit]")
    page.fill(".editor textarea", MARKDOWN)
    page.click(".editor .strong")
    count: Callable[[str], int] = lambda selector: page.locator(f"{DONE} .prose {selector}").count()  # noqa: E731
    assert [count(tag) for tag in ("h2", "strong", "ul > li", "ol li", "td", "pre .tok-string")] == [1, 2, 2, 1, 2, 1]
    assert count("script") == count("img") == count("u") == 0
    assert '<img src=x onerror="window.hacked = 4">' in page.inner_text(".message.user .text")
    assert '<img src=x onerror="window.hacked = 2">' in page.inner_text(f"{DONE} .prose")
    links = page.locator(f"{DONE} .prose a").evaluate_all("all => all.map((a) => [a.protocol, a.rel])")
    assert links and all(each == ["https:", "noopener noreferrer nofollow"] for each in links)
    assert page.evaluate("window.hacked") is None


def test_enter_sends_and_shift_enter_begins_a_line(page: Any) -> None:
    page.press("#prompt", "Enter")
    assert not texts(page, ".message")  # there is nothing to send
    page.type("#prompt", "one")
    page.press("#prompt", "Shift+Enter")
    page.type("#prompt", "two")
    page.press("#prompt", "Enter")
    page.wait_for_selector(DONE)
    assert texts(page, ".message.user .text") == ["one\ntwo"]
    assert page.evaluate("document.activeElement.id") == "prompt"


def test_colours_follow_the_system_until_they_are_chosen(server: Served, visit: Open) -> None:
    page = opened(visit, server.url, color_scheme="dark")
    colour = "getComputedStyle(document.body.parentElement).backgroundColor"
    dark = page.evaluate(colour)
    page.click("[aria-label='Use light colours']")
    light = page.evaluate(colour)
    page.reload()
    assert page.evaluate(colour) == light != dark


CONTRAST, FOCUS = (Path(__file__).with_name(name).read_text("utf-8") for name in ("contrast.js", "focus.js"))


@pytest.mark.parametrize("path", ["/", "/dashboard"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(server: Served, visit: Open, path: str, scheme: str) -> None:
    page = visit(server.url + path, color_scheme=scheme, reduced_motion="reduce")
    if path == "/":
        page.wait_for_selector("#model option", state="attached")
        answer(page)
        assert page.evaluate(CONTRAST) == []
        page.click("#open-settings")
    else:
        page.wait_for_selector(".card .head")
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("path", ["/", "/dashboard"])
def test_everything_has_a_name(server: Served, visit: Open, path: str) -> None:
    """As a screen reader meets it: Chromium's own tree."""
    page = visit(server.url + path)
    if path == "/":
        page.wait_for_selector("#model option", state="attached")
        answer(page)
        page.click("#open-settings")
    else:
        page.wait_for_selector(".card .head")
    roles = {"button", "link", "textbox", "combobox", "spinbutton", "dialog", "img", "log", "navigation", "region"}
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    seen = [each for each in nodes if not each.get("ignored") and each["role"]["value"] in roles]
    assert len(seen) > 5
    assert [each["role"]["value"] for each in seen if not each.get("name", {}).get("value")] == []


def test_all_is_reached_by_the_keyboard_and_focus_is_seen(page: Any) -> None:
    answer(page)
    page.focus(".skip")
    reached = []
    while (found := page.evaluate(FOCUS)) is not None and len(reached) < 50:
        reached.append(found)
        page.keyboard.press("Tab")
    names = [name for name, _ in reached]
    assert {"new", "Dashboard", "title", "model", "open-settings", "prompt", "Answer again", "Edit"} <= set(names)
    assert all(seen for _, seen in reached), reached


@pytest.mark.parametrize("width", [320, 390])
def test_it_fits_a_telephone(server: Served, visit: Open, width: int) -> None:
    page = opened(visit, server.url, viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True)
    answer(page)
    fits = "['html', '#messages'].every((each) => document.querySelector(each).scrollWidth <= innerWidth)"
    assert page.evaluate(fits) and page.is_visible(f"{DONE} .acts")
    page.click("#open-sidebar")
    page.wait_for_selector("#close-sidebar", state="visible")
    page.keyboard.press("Escape")
    page.wait_for_selector("#close-sidebar", state="hidden")
    page.click("#open-settings")
    assert page.evaluate(fits)


def test_a_prompt_that_is_too_long_is_said_and_can_be_shortened(page: Any) -> None:
    ask(page, "word " * 2000)
    page.wait_for_selector(".failure")
    assert re.search(r"The prompt has \d{4} tokens; the context holds 512\.", page.inner_text(".failure"))
    page.click(".failure button")
    page.fill(".editor textarea", QUESTION)
    page.press(".editor textarea", "Enter")
    page.wait_for_selector(f"{DONE} .prose:not(:empty)")
    assert texts(page, ".message.user .text") == [QUESTION] and not texts(page, ".failure")


def test_a_server_that_is_gone_is_said_and_answers_when_it_is_back(visit: Open) -> None:
    with served() as process:
        page = opened(visit, process.url)
        process.kill()
        ask(page)
        page.wait_for_selector(".failure")
        assert "does not answer" in page.inner_text(".failure")
        page.click("text=Try again")
        page.wait_for_selector(".failure")
        process.start()
        page.click("text=Try again")
        page.wait_for_selector(f"{DONE} .prose:not(:empty)")
        assert not texts(page, ".failure") and texts(page, ".message.user .text") == [QUESTION]


def test_a_page_that_finds_no_server_says_so_and_asks_again(page: Any) -> None:
    page.route("**/v1/models", lambda route: route.abort())
    page.reload()
    page.wait_for_selector("#banner", state="visible")
    assert "does not answer" in page.inner_text("#banner")
    page.unroute("**/v1/models")
    page.wait_for_selector("#banner", state="hidden")
    assert page.input_value("#model") == "stories"


def test_a_key_is_asked_for_and_kept(visit: Open) -> None:
    with served("--api-key", "sesame") as process:
        page = visit(process.url)
        page.wait_for_selector("#banner button")
        ask(page)
        page.wait_for_selector(".failure")
        page.click(".failure button")
        assert page.evaluate("document.activeElement.id") == "key"
        page.fill("#key", "guess")
        page.click("#settings .strong")
        page.wait_for_selector("#banner button")
        page.click("#banner button")
        page.fill("#key", "sesame")
        page.keyboard.press("Enter")
        page.wait_for_selector("#model option", state="attached")
        page.click(f"{DONE} [aria-label='Answer again']")
        page.wait_for_selector(f"{DONE} .prose:not(:empty)")
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        assert not page.is_visible("#banner")
        page.goto(f"{process.url}/dashboard")
        page.wait_for_selector("#state[data-state=live]")


def test_a_busy_server_is_asked_again_when_it_says(slow: Served, visit: Open) -> None:
    page = opened(visit, slow.url)
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 480, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{slow.url}/v1/chat/completions", json=body, timeout=serving.PATIENCE) as running:
        assert running.status_code == 200
        lines = running.iter_lines()  # which would close the stream if it were let go
        next(lines)
        set_sampling(page, max_completion_tokens=4)
        ask(page)
        page.wait_for_selector(".failure.wait")
        assert re.search(r"busy.* Trying again in \d+ s\.", page.inner_text(".failure.wait"))
    page.wait_for_selector(f"{DONE} .prose:not(:empty)")
    assert not texts(page, ".failure")


def test_another_model_is_chosen_and_remembered(visit: Open, tiny_gguf: Any) -> None:
    with served("--model", f"stories={builtin_model()}", "--model", f"bytes={tiny_gguf}") as process:
        page = opened(visit, process.url)
        sent = requests_of(page)
        assert page.locator("#model option").all_text_contents() == ["stories", "bytes"]
        page.select_option("#model", "bytes")
        set_sampling(page, max_completion_tokens=4)
        answer(page)
        assert sent[0]["model"] == "bytes"
        assert page.get_attribute(DONE, "aria-label") == "bytes"
        page.reload()
        page.wait_for_selector("#model option", state="attached")
        assert page.input_value("#model") == "bytes"
