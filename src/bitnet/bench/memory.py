"""Where the memory of a process with a model goes: what each part takes, beside what the process has resident.

A part is either measured, as what became resident while it was made, or known exactly: the bytes that the core and
NumPy hold for it. What is left is shown too: it is what the parts do not explain.
"""

from __future__ import annotations

import gc
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bitnet import backends, models
from bitnet.backends.base import BLOCK_SIZE
from bitnet.bench.conditions import PeakMemory
from bitnet.bench.machine import packings, use_threads
from bitnet.bench.speed import Run, Test, position_bytes, screen_bytes, stored_bytes
from bitnet.bench.suite import Plan
from bitnet.engine.runner import Runner
from bitnet.formats import Checkpoint
from bitnet.models import Decoder
from bitnet.models.load import Progress
from bitnet.models.synthetic import SyntheticCheckpoint
from bitnet.tokenizer import Tokenizer

MEASURED, KNOWN = "measured", "known"


@dataclass(frozen=True, slots=True)
class Part:
    """how: "measured" or "known"."""

    name: str
    nbytes: int
    how: str


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes. resident: of the process after the test. peak: the most since before the model was opened; None where
    nobody can tell. reserved: address space of the cache, of which only what was written is resident."""

    model: str
    threads: int
    test: str
    backend: str
    weights: str
    parts: tuple[Part, ...]
    resident: int
    peak: int | None
    reserved: int

    @property
    def explained(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def unexplained(self) -> int:
        """Negative where what is known is not all resident."""
        return self.resident - self.explained

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "explained": self.explained, "unexplained": self.unexplained}


def measure(
    checkpoint: Checkpoint, plan: Plan, loading: Progress, progress: Callable[[str], None] = lambda doing: None
) -> Iterator[MemoryUse]:
    """The model is loaded, its file closed, and the plan's first test run once. One model a process: what an earlier
    one left would count as Python's."""
    plan.check()
    test = plan.tests[0]
    threads = use_threads(plan.backend, plan.threads[0])
    ops = backends.make(plan.backend, plan.weights, plan.kernel)
    gc.collect()
    parts, peak = [Part("Python and its libraries", resident(), MEASURED)], PeakMemory()
    tokenizer = None if isinstance(checkpoint, SyntheticCheckpoint) else Tokenizer.from_checkpoint(checkpoint)
    if tokenizer is not None:
        parts.append(Part("tokenizer", resident() - parts[0].nbytes, MEASURED))
    model = models.load(checkpoint, ops, loading, plan.force, plan.head)
    blocks = -(-(test.positions + 1) // BLOCK_SIZE)
    runner = Runner(model, max(blocks, -(-plan.ctx_size // BLOCK_SIZE)), plan.kv)
    progress(test.name)
    checkpoint.close()  # as BitNet does; its pages are no longer there
    run = Run(runner, blocks, plan.n_batch)
    run.timed(test)
    gc.collect()
    parts += [Part(f"weights: {name}", size, KNOWN) for name, size in weights(model).items()]
    written = -(-test.positions // BLOCK_SIZE)
    parts.append(Part(f"keys and values of {test.positions} tokens", cache_bytes(model, plan.kv, written), KNOWN))
    arena = getattr(runner.compute, "arena_bytes", 0)
    if arena:
        parts.append(Part(f"values between the operations, {step_tokens(test, plan)} tokens", arena, KNOWN))
    yield MemoryUse(
        model=checkpoint.path.name.removeprefix("synthetic-"),
        threads=threads,
        test=test.name,
        backend=plan.backend,
        weights=packings(plan.backend, model),
        parts=tuple(parts),
        resident=resident(),
        peak=peak(),
        reserved=int(getattr(runner.cache, "nbytes", 0)),
    )


def step_tokens(test: Test, plan: Plan) -> int:
    """Of the largest step."""
    return max(min(test.n_prompt or test.n_depth, plan.n_batch), 1)


def cache_bytes(model: Decoder, kv: str, blocks: int) -> int:
    return blocks * BLOCK_SIZE * position_bytes(model.config, kv)


def weights(model: Decoder) -> Counter[str]:
    """Bytes by what they are for; a table that two share is counted once."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    for name, weight in model.weights.items():
        if id(weight) not in seen:
            seen.add(id(weight))
            found[kind(name)] += stored_bytes(weight)
    if screen_bytes(model):
        found["screen of the head"] = screen_bytes(model)
    return found


def kind(name: str) -> str:
    last = name.rsplit(".", 1)[-1]
    if re.search(r"norm", last):
        return "norms"
    return {"embed_tokens": "embedding", "lm_head": "head"}.get(last, "layers")


def resident() -> int:
    """Bytes of this process, to the page where the system counts so (proc_pid_smaps_rollup)."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Rss:")))
    except (OSError, ValueError, StopIteration):
        return int(psutil.Process().memory_info().rss)
