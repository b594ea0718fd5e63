"""A peer in a process of its own: loads a model once and runs the tests that it is asked for, line by line in JSON.

    python worker.py NAME      # the engine is `Engine` of the file NAME.py in this folder

    <- {"version": "0.3.36"}                                                    once, as soon as the peer is imported
    -> {"batch": 512, "positions": 641, "path": "model.gguf", ...}              what to load
    <- {"load_s": 0.71, "vocab_size": 128256}
    -> {"threads": 2, "prompt": 512, "generate": 0, "depth": 0}                 a test, as often as wanted
    <- {"ns": 812000000, "first_ns": 812000000, "token_ns": [], "peak_rss": 1700000000}
    <- {"error": "what went wrong"}                                             in place of any answer

Runs in the peer's Python, which need not have bitnet, so it imports the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from itertools import pairwise
from typing import Any


def token_ids(count: int, vocab_size: int) -> list[int]:
    """Those of bitnet.bench.speed."""
    return [int(vocab_size * (i * 0.6180339887498949 % 1)) for i in range(1, count + 1)]


def timed(engine: Any, batch: int, threads: int, prompt: int, generate: int, depth: int) -> dict[str, Any]:
    """The logits of the last token are there when `engine.read` returns; neither side samples."""

    def read(ids: list[int]) -> None:
        for start in range(0, len(ids), batch):
            engine.read(ids[start : start + batch])

    engine.reset(threads)
    ids = token_ids(depth + prompt + generate, engine.vocab_size)
    read(ids[:depth])
    marks = [time.perf_counter_ns()]
    if prompt:
        read(ids[depth : depth + prompt])
        marks.append(time.perf_counter_ns())
    for token in ids[depth + prompt :]:
        engine.read([token])
        marks.append(time.perf_counter_ns())
    steps = [end - start for start, end in pairwise(marks)]
    return {"ns": marks[-1] - marks[0], "first_ns": steps[0], "token_ns": steps[len(steps) - generate :]}


def peak_rss() -> int:
    try:
        with open("/proc/self/status") as lines:
            return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
    except (OSError, StopIteration):
        return 0


def serve(name: str) -> None:
    # Libraries print what they like, so the answers keep the pipe to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        peer = import_module(name)
        answer(version=peer.version())
        request = json.loads(sys.stdin.readline())
        start = time.perf_counter()
        engine = peer.Engine(request)
        answer(load_s=time.perf_counter() - start, vocab_size=engine.vocab_size)
        for line in sys.stdin:
            answer(**timed(engine, request["batch"], **json.loads(line)), peak_rss=peak_rss())
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    serve(sys.argv[1])
