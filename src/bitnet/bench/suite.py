"""Every test of a benchmark on one model and every engine, in turns."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from bitnet import backends
from bitnet.bench import peers
from bitnet.bench.conditions import Disturbance, build, warnings
from bitnet.bench.engines import Bitnet, Engine
from bitnet.bench.machine import Bandwidth, cpu_info, use_threads
from bitnet.bench.peers.process import PeerError
from bitnet.bench.results import Result, compared, measured
from bitnet.bench.speed import Sample, Test
from bitnet.engine import EngineConfig
from bitnet.errors import ContextError
from bitnet.formats import Checkpoint
from bitnet.models.load import Progress, open_model

Case = tuple[int, Test]  # (threads, test)
Samples = dict[tuple[Engine, Case], list[Sample]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: all `tests` at every number of `threads` (0: all processors), here and in the peers.

    peers: the Python that each of them runs in.
    """

    tests: tuple[Test, ...]
    threads: tuple[int, ...] = (0,)
    repetitions: int = 5
    n_batch: int = 512
    kv: str = "f16"
    ctx_size: int = 0
    backend: str = "cpu"
    force: bool = False
    head: str = "auto"
    weights: str = "auto"
    kernel: str = "auto"
    peers: Mapping[str, str] = field(default_factory=dict)

    @property
    def positions(self) -> int:
        return max(test.positions for test in self.tests)

    def check(self) -> None:
        """ParameterError where it makes no sense."""
        EngineConfig(ctx_size=self.ctx_size, chunk=self.n_batch, kv=self.kv, head=self.head)  # checks them
        for test in self.tests:
            if self.ctx_size and test.positions > self.ctx_size:
                raise ContextError(f"{test.name} takes {test.positions} positions; --ctx-size is {self.ctx_size}.")


def run(
    checkpoint: Checkpoint, plan: Plan, loading: Progress, progress: Callable[[str], None] = lambda doing: None
) -> Iterator[Result]:
    """The results of one model, once all are known. Raises ParameterError where the plan makes no sense."""
    plan.check()
    began = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    use_threads(plan.backend, max(plan.threads))
    cases = [(use_threads(plan.backend, threads), test) for threads in plan.threads for test in plan.tests]
    decoding = [threads for threads, test in cases if test.n_gen]
    bandwidth = Bandwidth(plan.backend)
    bandwidth.measure(decoding)
    notes: list[str] = []
    with ExitStack() as stack:
        engines = loaded(checkpoint, plan, loading, stack, notes.append)
        disturbance = Disturbance()
        samples = rounds(engines, cases, plan, progress, notes.append)
        shares = disturbance.shares()
        peaks = {engine: engine.peak_rss() for engine in engines}
    bandwidth.measure(decoding)
    shared: dict[str, Any] = {
        "build_commit": build(),
        "build_number": 0,
        "cpu_info": cpu_info(),
        "gpu_info": "",
        "n_batch": plan.n_batch,
        "n_ubatch": plan.n_batch,
        "test_time": began,
        "model": checkpoint.path.name.removeprefix("synthetic-"),
        "depth_cost": None,
        **dict.fromkeys(("ratio", "ratio_least", "ratio_most")),
        "others_share": shares[0],
        "steal_share": shares[1],
        "options": options(plan),
        "notes": [*notes, *warnings(shares, bandwidth.measured)],
    }
    results = [
        Result(
            **measured(engine.facts, test, threads, found, bandwidth(threads)),
            **shared,
            peak_rss_bytes=peaks[engine],
        )
        for (engine, (threads, test)), found in samples.items()
    ]
    yield from compared(results)


def loaded(
    checkpoint: Checkpoint, plan: Plan, loading: Progress, stack: ExitStack, note: Callable[[str], None]
) -> list[Engine]:
    """This engine and every peer that can be had; the stack ends them."""
    ours = Bitnet(
        checkpoint,
        positions=plan.positions,
        chunk=plan.n_batch,
        kv=plan.kv,
        head=plan.head,
        ops=backends.make(plan.backend, plan.weights, plan.kernel),
        force=plan.force,
        progress=loading,
    )
    stack.enter_context(closing(ours))
    if not plan.peers:
        return [ours]
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bitnet-bench-"))
    job = peers.Job(checkpoint, open_model(checkpoint)[1], plan.positions, plan.n_batch, Path(folder), loading)
    return [ours, *peers.start(job, plan.peers, stack, note)]


def rounds(
    engines: Sequence[Engine],
    cases: Sequence[Case],
    plan: Plan,
    progress: Callable[[str], None],
    note: Callable[[str], None],
) -> Samples:
    """Warm up, then repeat all cases, the engines in turn within each, so that a machine that changes changes for all.

    Every other time they take turns the other way round. A peer that fails takes no further part.
    """
    samples: Samples = defaultdict(list)
    alive = list(engines)
    for turn in range(-1, plan.repetitions):
        for threads, test in cases:
            for engine in alive[:: -1 if turn % 2 else 1]:
                who = engine.facts.engine
                progress(f"{who} {test.name}, {threads} threads: {max(turn, 0) + 1} of {plan.repetitions}")
                try:
                    if turn < 0:
                        engine.timed(test.warm_up(plan.n_batch), threads)
                    else:
                        samples[engine, (threads, test)].append(engine.timed(test, threads))
                except PeerError as error:
                    alive.remove(engine)
                    note(f"{who} stopped at {test.name} with {threads} threads: {error}")
    return {(engine, case): samples[engine, case] for case in cases for engine in engines if samples[engine, case]}


def options(plan: Plan) -> dict[str, Any]:
    names = ("repetitions", "head", "weights", "kernel", "ctx_size", "force")
    return {name: getattr(plan, name) for name in names}
