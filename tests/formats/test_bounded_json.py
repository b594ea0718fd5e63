"""JSON that means harm is refused in time."""

import pytest

from bitnet.errors import FormatError
from bitnet.formats.bounded_json import parse_object


def test_an_object_is_parsed():
    assert parse_object(b'{"a": [1, "]]\\"[", null]}', "x") == {"a": [1, ']]"[', None]}


@pytest.mark.parametrize(
    "text, says",
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not valid JSON"),
        (b'{"a": "', "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "JSON list"),
        (b"null", "NoneType"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' occurs twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"a": ' * 100_000, "levels deep"),
        (b"[" * 1_000_000, "levels deep"),
    ],
)
def test_anything_else_is_refused(text, says):
    with pytest.raises(FormatError, match=f"config.json.*{says}"):
        parse_object(text, "config.json")
