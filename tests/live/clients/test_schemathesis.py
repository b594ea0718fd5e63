"""Requests made up from our own /openapi.json: whatever the schema allows or forbids, the answer is as it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import serving

CONFIG = Path(__file__).parent / "schemathesis.toml"


def test_nothing_is_found(ran: Callable[..., Any], client: serving.Client) -> None:
    done = ran(
        "schemathesis", "st", "--config-file", CONFIG, "run", f"{client.base_url}/openapi.json",
        "-H", "Authorization: Bearer sesame", "--max-examples", 25, "--seed", 1, "--no-color", "--warnings", "off",
        "--exclude-checks", "ignored_auth",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Tested: " in done.stdout
