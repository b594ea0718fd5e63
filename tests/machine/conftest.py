from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from machine_files import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Put texts at paths below a folder, and give that folder."""

    def files(texts: Mapping[str, object]) -> Path:
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return tmp_path

    return files
