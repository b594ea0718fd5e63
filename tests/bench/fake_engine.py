"""An engine for bitnet.bench.peers.worker that does nothing, or what the request's `behave` says."""

from __future__ import annotations

import os
import sys
import time
from typing import Any


def version() -> str:
    return "1.2"


class Engine:
    vocab_size = 320

    def __init__(self, request: dict[str, Any]) -> None:
        self._behave = request.get("behave", "")
        self._reads: list[int] = []
        if self._behave == "refuse":
            raise RuntimeError("this file is not for me")
        print("a library that prints what it likes")

    def reset(self, threads: int) -> None:
        self._reads = []

    def read(self, ids: list[int]) -> None:
        self._reads.append(len(ids))
        if self._behave == "die":
            print("ran into a wall", file=sys.stderr, flush=True)
            os._exit(3)
        if self._behave == "hang":
            time.sleep(600)
        if self._behave == "raise":
            raise ValueError("cannot read that")
