"""Options of sampling that no dialect of the server takes."""

from __future__ import annotations

from typing import Any

SAMPLING: dict[str, list[Any]] = {
    "temperature": [-0.1, 101, "hot", [], True],
    "top_p": [-0.1, 1.1, "x"],
    "top_k": [-2, 1.5, "x", True],
    "min_p": [-0.1, 1.1],
    "presence_penalty": [-101, 101, "x"],
    "seed": [-(2**63) - 1, 2**64, 1.5, "x"],
    "stop": [[""], [1], {}, 5],
}
