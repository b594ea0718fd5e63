"""Every test of a benchmark on one model, each with what it takes to judge and repeat it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from math import prod
from typing import Any

import bitnet
from bitnet import backends, models
from bitnet.bench.machine import Bandwidth, cpu_info, isa, packings, use_threads
from bitnet.bench.speed import Test, kv_bytes, measure, screen_bytes, weight_bytes
from bitnet.engine import EngineConfig
from bitnet.errors import ContextError
from bitnet.formats import Checkpoint
from bitnet.models import Decoder
from bitnet.models.load import Progress


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run: all `tests` at every number of `threads` (0: all processors)."""

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


@dataclass(frozen=True, slots=True)
class Result:
    """One line. The fields down to samples_ts are llama-bench's; those after it are ours.

    bytes_per_token: weights and cache that generating a token reads. gb_per_s: these times the rate.
    read_gb_per_s: what so many threads read at best, and bandwidth_share the part of it that was used.
    logits_hash: of all logits of the last token. head: "screen" where tokens were found by one, else "full".
    weights: how ternary weights are kept, such as "1.6bit"; "" on other backends.
    """

    build_commit: str
    build_number: int
    cpu_info: str
    gpu_info: str
    backends: str
    model_filename: str
    model_type: str
    model_size: int
    model_n_params: int
    n_batch: int
    n_ubatch: int
    n_threads: int
    type_k: str
    type_v: str
    n_prompt: int
    n_gen: int
    n_depth: int
    test_time: str
    avg_ns: int
    stddev_ns: int
    avg_ts: float
    stddev_ts: float
    samples_ns: list[int]
    samples_ts: list[float]
    isa: str
    bytes_per_token: int | None
    gb_per_s: float | None
    read_gb_per_s: float | None
    bandwidth_share: float | None
    logits_hash: str
    head: str
    weights: str

    @property
    def test(self) -> Test:
        return Test(self.n_prompt, self.n_gen, self.n_depth)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run(
    checkpoint: Checkpoint, plan: Plan, loading: Progress, progress: Callable[[str], None] = lambda doing: None
) -> Iterator[Result]:
    """The results as they come. Raises ParameterError where the plan makes no sense."""
    EngineConfig(ctx_size=plan.ctx_size, chunk=plan.n_batch, kv=plan.kv, head=plan.head)  # checks them
    for test in plan.tests:
        if plan.ctx_size and test.positions > plan.ctx_size:
            raise ContextError(f"{test.name} takes {test.positions} positions; --ctx-size is {plan.ctx_size}.")
    use_threads(plan.backend, max(plan.threads))
    model = models.load(
        checkpoint, backends.make(plan.backend, plan.weights, plan.kernel), loading, plan.force, plan.head
    )
    bandwidth = Bandwidth(plan.backend)
    for threads in plan.threads:
        used = use_threads(plan.backend, threads)
        for test in plan.tests:
            yield one(checkpoint, model, plan, test, used, bandwidth, progress)


def one(
    checkpoint: Checkpoint,
    model: Decoder,
    plan: Plan,
    test: Test,
    threads: int,
    bandwidth: Bandwidth,
    progress: Callable[[str], None],
) -> Result:
    began = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    timing = measure(
        model,
        test,
        plan.repetitions,
        plan.n_batch,
        plan.kv,
        lambda done: progress(f"{test.name}, {threads} threads: {done + 1} of {plan.repetitions}"),
    )
    rates = [test.tokens * 1e9 / ns for ns in timing.samples_ns]
    decoding = test.n_gen > 0 and test.n_prompt == 0
    nbytes = weight_bytes(model) + kv_bytes(model, test, plan.kv) if decoding else None
    moved = nbytes * statistics.mean(rates) / 1e9 if nbytes else None
    peak = bandwidth(threads) if decoding else None
    infos = checkpoint.tensors().values()
    return Result(
        build_commit=bitnet.__version__,
        build_number=0,
        cpu_info=cpu_info(),
        gpu_info="",
        backends="CPU" if plan.backend == "cpu" else plan.backend,
        model_filename=str(checkpoint.path),
        model_type=model_type(checkpoint),
        model_size=sum(info.nbytes for info in infos),
        model_n_params=parameters(checkpoint),
        n_batch=plan.n_batch,
        n_ubatch=plan.n_batch,
        n_threads=threads,
        type_k=plan.kv,
        type_v=plan.kv,
        n_prompt=test.n_prompt,
        n_gen=test.n_gen,
        n_depth=test.n_depth,
        test_time=began,
        avg_ns=round(statistics.mean(timing.samples_ns)),
        stddev_ns=round(deviation(timing.samples_ns)),
        avg_ts=statistics.mean(rates),
        stddev_ts=deviation(rates),
        samples_ns=list(timing.samples_ns),
        samples_ts=rates,
        isa=isa(plan.backend),
        bytes_per_token=None if nbytes is None else round(nbytes),
        gb_per_s=moved,
        read_gb_per_s=peak,
        bandwidth_share=moved / peak if moved and peak else None,
        logits_hash=timing.logits_hash,
        head="screen" if screen_bytes(model) else "full",
        weights=packings(plan.backend, model),
    )


def deviation(samples: Any) -> float:
    """The standard deviation of a sample (n - 1), 0 for a single one."""
    return statistics.stdev(samples) if len(samples) > 1 else 0.0


def parameters(checkpoint: Checkpoint) -> int:
    return sum(prod(info.shape) for info in checkpoint.tensors().values())


def model_type(checkpoint: Checkpoint) -> str:
    """ "bitnet-b1.58 2.41B I2_S": architecture, size, and the type that holds most of the weights."""
    weights: dict[str, int] = {}
    for info in checkpoint.tensors().values():
        weights[info.dtype] = weights.get(info.dtype, 0) + prod(info.shape)
    return f"{checkpoint.architecture} {short(parameters(checkpoint))} {max(weights, key=weights.__getitem__)}"


def short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"
