"""A server with the tiny model that many tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import serving


@pytest.fixture(scope="package")
def client(tiny_gguf: Path) -> Iterator[serving.Client]:
    with serving.serving({"tiny": serving.opener(tiny_gguf, ctx_size=256)}) as opened:
        yield opened
