from __future__ import annotations

from pathlib import Path

import pytest
from machine_files import Write, writer


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return writer(tmp_path)
