"""Whatever else happens in the engine, a request gets what it gets alone: tokens and log-probabilities to the bit."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import pytest
import tiny

import bitnet._core as core
from bitnet import backends
from bitnet.engine import LLM, EngineConfig, SamplingParams, Sequence
from bitnet.engine.sequence import NEVER
from bitnet.engine.service import Service

PATIENCE = 120  # seconds
CONTEXT = 160
TEXT = [1 + (11 * i + i // 7) % 250 for i in range(100)]
PROMPTS = [TEXT[:70], TEXT[:33], TEXT[40:], [5] * 48, [*TEXT[:16], *[9, 8, 7] * 10], TEXT[:1]]
END = {"max_tokens": 24, "ignore_eos": True}
PARAMS = [
    SamplingParams(temperature=0, **END),
    SamplingParams(temperature=1.1, seed=1, **END),
    SamplingParams(temperature=1.3, top_k=0, top_p=0.97, seed=2, logprobs=3, **END),
    SamplingParams(temperature=0.9, seed=3, repetition_penalty=1.3, presence_penalty=0.4, **END),
    SamplingParams(temperature=1.0, seed=4, logit_bias=((65, 3.0),), **END),
]
TARGETS = [(prompt, params) for prompt in PROMPTS for params in PARAMS]
ARRANGEMENTS = [
    {"kv": "f16", "max_sequences": 16, "chunk": 512},
    {"kv": "f32", "max_sequences": 3, "chunk": 7, "kv_blocks": 14},
    {"kv": "int8", "max_sequences": 8, "chunk": 40, "kv_blocks": 24},
    {"kv": "f16", "max_sequences": 5, "chunk": 16, "prefix_cache": False},
]


@cache
def model() -> Any:
    return tiny.load(tiny.Synthetic(tiny.BITNET), "cpu" if tiny.usable_isas() else "reference")


@cache
def alone(kv: str) -> list[tuple[list[int], Any]]:
    """What each target gets with nothing before it, nothing beside it, and one thread."""
    backends.set_threads(1)
    answers = []
    for prompt, params in TARGETS:
        llm = LLM(model(), tiny.tokenizer(), EngineConfig(ctx_size=CONTEXT, max_sequences=1, kv=kv, prefix_cache=False))
        sequence = llm.add_request(prompt, params)
        list(llm.run([sequence]))
        answers.append((sequence.output, sequence.logprobs))
    return answers


class Oracle:
    """A drafter that knows what each target will say, and says something else now and then."""

    pays = 0.01

    def __init__(self, kv: str) -> None:
        answers = [output for output, _ in alone(kv)]
        self.known = {(tuple(p), params): answer for (p, params), answer in zip(TARGETS, answers, strict=True)}
        self.random = random.Random(0)

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        return {sequence: self.after(sequence, count) for sequence, count in wanted.items()}

    def after(self, sequence: Sequence, count: int) -> list[int]:
        known = self.known.get((tuple(sequence.prompt), sequence.params), [7] * CONTEXT)
        right = known[len(sequence.output) :][:count]
        return [7 if self.random.random() < 0.2 else token for token in right]

    def forget(self, sequence: Sequence) -> None:
        pass


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = core.threads()
    yield
    backends.set_threads(before)


class Crowd:
    """Requests that come when they like, many like a target at their beginning, and often leave early."""

    def __init__(self, service: Service, llm: LLM, choose: random.Random) -> None:
        self.service, self.llm, self.choose = service, llm, choose

    async def stranger(self) -> None:
        choose = self.choose
        prompt = choose.choice(PROMPTS)[: choose.randint(1, 70)] + choose.choices(
            range(1, 250), k=choose.randint(0, 30)
        )
        params = SamplingParams(
            temperature=choose.choice([0, 1.5]), max_tokens=choose.randint(0, 40), logprobs=choose.choice([None, 1])
        )
        scored = params.logprobs is not None
        await self.pause()
        ticket = self.service.submit(self.llm.prepare(prompt, params, score_from=0 if scored else NEVER))
        stays = choose.choice([0, 1, 5, 1000])
        async for _ in ticket:
            stays -= 1
            if stays <= 0:
                break

    async def target(self, prompt: list[int], params: SamplingParams) -> Sequence:
        await self.pause()
        ticket = self.service.submit(self.llm.prepare(prompt, params))
        async for _ in ticket:
            pass
        return ticket.sequence

    async def pause(self) -> None:
        for _ in range(self.choose.randint(0, 60)):
            await asyncio.sleep(0.0005)


@pytest.mark.parametrize("drafts", [False, True], ids=["", "drafts"])
@pytest.mark.parametrize("number", range(len(ARRANGEMENTS)))
def test_a_crowd_changes_nothing(number: int, drafts: bool) -> None:
    arrangement, choose = ARRANGEMENTS[number], random.Random(number)
    kv = str(arrangement["kv"])
    expected = alone(kv)
    backends.set_threads(choose.randint(1, 3))
    config = EngineConfig(ctx_size=CONTEXT, **arrangement)  # type: ignore[arg-type]
    llm = LLM(model(), tiny.tokenizer(), config, Oracle(kv) if drafts else None)

    async def main() -> list[Sequence]:
        service = Service(llm)
        crowd = Crowd(service, llm, choose)
        try:
            strangers = [asyncio.ensure_future(crowd.stranger()) for _ in range(40)]
            found = await asyncio.gather(*(crowd.target(*target) for target in TARGETS))
            await asyncio.gather(*strangers)
            return found
        finally:
            await asyncio.to_thread(service.close)

    found = asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert [(sequence.output, sequence.logprobs) for sequence in found] == expected
    assert llm.scheduler.pool.free == llm.scheduler.pool.count
    assert any(sequence.cached for sequence in found) == config.prefix_cache
    assert any(sequence.accepted for sequence in found) == drafts
