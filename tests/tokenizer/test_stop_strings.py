"""A stop string is found however the text is cut, and no part of it is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import ParameterError
from bitnet.tokenizer import StopStrings

STOPS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4)


def until_stop(text, stops):
    """The definition: look after every character, and cut before the longest stop that has just been completed."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return None


@given(pieces=st.lists(st.text("abc", max_size=5), max_size=10), stops=STOPS)
def test_any_cutting_gives_the_text_before_the_first_stop(pieces, stops):
    scanner = StopStrings(stops)
    shown = "".join(map(scanner.push, pieces))
    text, expected = "".join(pieces), until_stop("".join(pieces), stops)
    assert scanner.stopped is (expected is not None)
    assert shown + scanner.flush() == (text if expected is None else expected)


@given(text=st.text("abc", max_size=30), stops=STOPS)
def test_text_is_held_back_only_while_it_may_become_a_stop(text, stops):
    scanner = StopStrings(stops)
    shown = "".join(map(scanner.push, text))
    held = scanner.flush()
    assert scanner.stopped or held == "" or any(stop.startswith(held) for stop in stops)
    assert scanner.stopped or shown + held == text


def test_without_stops_everything_passes():
    scanner = StopStrings()
    assert scanner.push("abc") == "abc" and scanner.flush() == "" and not scanner.stopped


def test_nothing_follows_a_stop():
    scanner = StopStrings(["\nUser:"])
    assert scanner.push("Hi\nUs") == "Hi" and scanner.push("er: more") == "" and scanner.push("x") == ""
    assert scanner.matched == "\nUser:" and scanner.flush() == ""


@pytest.mark.parametrize("stop", ["", None, 3])
def test_an_empty_stop_is_refused(stop):
    with pytest.raises(ParameterError):
        StopStrings([stop])
