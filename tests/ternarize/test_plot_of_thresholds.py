"""The numbers on the tuner's picture."""

import pytest

from bitnet.ternarize.plot import shown


@pytest.mark.parametrize("value, text", [(4437.2, "4,437"), (100, "100"), (17.109, "17.1"), (1.5, "1.5")])
def test_perplexities_are_written_as_people_write_them(value, text):
    assert shown(value) == text
