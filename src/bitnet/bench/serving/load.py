"""A load on a server: requests that come at a rate (an open loop), or as others end (a closed one)."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from bitnet.bench.serving.client import PATHS, Record, Target, first_model
from bitnet.bench.serving.prompts import counted, prompts
from bitnet.bench.serving.shapes import Lengths, arrivals
from bitnet.bench.serving.summary import METRICS, Summary, summary
from bitnet.errors import ParameterError

Show = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Load:
    """request_rate: a second; infinite: as fast as `max_concurrency` (0: no bound) lets them.

    prefix_len: tokens that prompts share, which come on top of input_len; `num_prefixes` such texts.
    slo: the most milliseconds of "ttft", "tpot", "itl" (every one of them) and "e2el" for a request to count as good.
    options: further fields of each request.
    """

    base_url: str = "http://127.0.0.1:8080"
    api_key: str = ""
    model: str = ""
    endpoint: str = "completions"
    num_prompts: int = 100
    request_rate: float = math.inf
    max_concurrency: int = 0
    burstiness: float = 1.0
    input_len: Lengths = field(default_factory=lambda: Lengths.parse("128"))
    output_len: Lengths = field(default_factory=lambda: Lengths.parse("64"))
    prefix_len: int = 0
    num_prefixes: int = 1
    slo: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.endpoint not in PATHS:
            raise ParameterError(f"There is no endpoint {self.endpoint!r}.", f"Known: {', '.join(PATHS)}.")
        if not self.request_rate > 0 or not self.burstiness > 0:
            raise ParameterError("The rate of requests and their burstiness are more than 0.", "See --request-rate.")
        if any(name not in METRICS or not bound > 0 for name, bound in self.slo.items()):
            raise ParameterError(f"{dict(self.slo)} is no objective.", f"Known: {', '.join(METRICS)}, in ms.")
        if not self.base_url.startswith(("http://", "https://")):
            raise ParameterError(f"{self.base_url!r} is no URL of a server.", "Try --base-url http://127.0.0.1:8080")


def run(load: Load, show: Show = lambda text: None) -> Summary:
    """Raises BitNetError where there is no server, or none that answers a first request."""
    return asyncio.run(measure(load, show))


async def measure(load: Load, show: Show) -> Summary:
    key = {"Authorization": f"Bearer {load.api_key}"} if load.api_key else {}
    no_bound = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    url = load.base_url.rstrip("/").removesuffix("/v1")
    async with httpx.AsyncClient(base_url=url, headers=key, timeout=load.timeout, limits=no_bound) as http:
        target = Target(http, load.endpoint, load.model or await first_model(http), load.options)
        rng = np.random.default_rng(load.seed)
        show("asking how the server counts tokens")
        ratio, counts = await counted(target, rng)
        lengths, answers = (each.draw(rng, load.num_prompts) for each in (load.input_len, load.output_len))
        asked = prompts(rng, ratio, lengths, load.prefix_len, load.num_prefixes)
        due = arrivals(load.request_rate, load.burstiness, load.num_prompts, rng)
        records = await send(load, target, asked, answers.tolist(), due.tolist(), show)
    return summary(load, target.model, records, counts)


async def send(
    load: Load, target: Target, asked: list[str], answers: list[int], due: list[float], show: Show
) -> list[Record]:
    """Whoever has to wait for the server in an open loop waits from the moment when the request was due."""
    gate = asyncio.Semaphore(load.max_concurrency) if load.max_concurrency else contextlib.nullcontext()
    from_due = not load.max_concurrency and not math.isinf(load.request_rate)
    began, done = time.perf_counter(), 0

    async def one(i: int) -> Record:
        nonlocal done
        record = Record(due=began + due[i])
        await asyncio.sleep(record.due - time.perf_counter())
        async with gate:
            record.started = record.due if from_due else time.perf_counter()
            await target.ask(asked[i], answers[i], record)
        done += 1
        show(f"{done} of {len(asked)} requests")
        return record

    return list(await asyncio.gather(*map(one, range(len(asked)))))
