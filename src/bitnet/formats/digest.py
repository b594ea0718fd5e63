"""What tells one file's contents from another's."""

from __future__ import annotations

import hashlib
from pathlib import Path

PIECE = 1 << 20


def sha256(*paths: Path) -> str:
    """In hexadecimal, of the files' bytes one after the other."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                total.update(piece)
    return total.hexdigest()
