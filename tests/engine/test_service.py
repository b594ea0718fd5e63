"""Many requests at one door: each gets what it would get alone, and none can harm another or the loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import scripted
import tiny

from bitnet.engine import LLM, EngineConfig, SamplingParams, Sequence
from bitnet.engine.service import Service, Ticket
from bitnet.errors import BitNetError, ResourceError

T = TypeVar("T")
TOKENIZER = tiny.tokenizer()
PATIENCE = 60  # seconds after which a test says that something hangs
LONG = 200
SCRIPTS = {first: [first, *((first * 31 + 7 * i) % 250 for i in range(1, 256))] for first in range(1, 20)}


class Gated(scripted.Scripted):
    """Waits before each step while `gate` is closed; raises what `failures` holds, one a step.

    closes_at: the step before which the gate closes by itself.
    """

    def __init__(self, scripts: Any = SCRIPTS) -> None:
        super().__init__(scripts)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.failures: list[BaseException] = []
        self.closes_at = -1
        self.gate.set()

    def __call__(self, step: Any, cache: Any) -> Any:
        if len(self.tokens_per_step) == self.closes_at:
            self.gate.clear()
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if self.failures:
            raise self.failures.pop(0)
        return super().__call__(step, cache)


def engine(model: Any = None, **config: Any) -> LLM:
    return LLM(model or Gated(), TOKENIZER, EngineConfig(**{"max_sequences": 4, "chunk": 16, **config}))


def greedy(count: int = 20) -> SamplingParams:
    return SamplingParams(max_tokens=count, temperature=0, ignore_eos=True)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return asyncio.run(asyncio.wait_for(main(), PATIENCE))


@asynccontextmanager
async def served(llm: LLM) -> AsyncIterator[Service]:
    service = Service(llm)
    try:
        yield service
    finally:
        await asyncio.to_thread(service.close)
        assert (service.running, service.waiting) == (0, 0)
        assert not llm.busy
        assert llm.scheduler.pool.free == llm.scheduler.pool.count


async def tokens_of(ticket: Ticket) -> list[int]:
    return [output.token async for output in ticket if output.token is not None]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def ask(llm: LLM, first: int, count: int = 20, length: int = 5) -> Sequence:
    return llm.prepare(SCRIPTS[first][:length], greedy(count))


def test_many_tickets_get_what_each_gets_alone() -> None:
    model = tiny.load(tiny.Synthetic(tiny.BITNET), "cpu" if tiny.usable_isas() else "reference")
    prompts = [[1 + (7 * i + 13 * j) % 250 for j in range(1 + 11 * i % 60)] for i in range(24)]
    params = [SamplingParams(max_tokens=5 + i, seed=i, temperature=1.2, logprobs=i % 3 or None) for i in range(24)]
    alone = engine(model, max_sequences=1)
    expected = [alone.add_request(*request) for request in zip(prompts, params, strict=True)]
    texts = dict.fromkeys(expected, "")
    for output in alone.run(expected):
        texts[output.sequence] += output.text

    async def one(service: Service, llm: LLM, i: int) -> tuple[str, Sequence]:
        await asyncio.sleep(0.001 * (i % 5))
        ticket = service.submit(llm.prepare(prompts[i], params[i]))
        return "".join([output.text async for output in ticket]), ticket.sequence

    async def main() -> list[tuple[str, Sequence]]:
        llm = engine(model)
        async with served(llm) as service:
            return await asyncio.gather(*(one(service, llm, i) for i in range(24)))

    for (text, found), wanted in zip(run(main), expected, strict=True):
        assert (text, found.output, found.logprobs) == (texts[wanted], wanted.output, wanted.logprobs)
        assert found.finish_reason == wanted.finish_reason


@pytest.mark.parametrize(
    "how, when",
    [*((how, when) for how in ("abort", "cancel") for when in ("queued", "prefill", "decode")), ("break", "decode")],
)
def test_whoever_leaves_ends_his_request_and_no_other(when: str, how: str) -> None:
    async def main() -> None:
        model = Gated()
        llm = engine(model, max_sequences=1 if when == "queued" else 2)
        async with served(llm) as service:
            model.gate.clear()
            neighbour = service.submit(ask(llm, 1, 60))
            length = 100 if when == "prefill" else 5  # more than a chunk
            leaver = service.submit(ask(llm, 2, 150, length))
            seen: list[int] = []

            async def read() -> None:
                async for output in leaver:
                    seen.append(output.token or 0)
                    if how == "break":
                        break

            reader = asyncio.create_task(read())
            await asyncio.to_thread(model.entered.wait, PATIENCE)  # both are at the door, at the latest
            model.closes_at = {"queued": 1, "prefill": 2, "decode": 12}[when]
            model.gate.set()
            await until(lambda: not model.gate.is_set() and bool(seen) == (when == "decode"))
            assert leaver.sequence.computed > 0 or when == "queued"
            if how == "abort":
                leaver.abort()
                leaver.abort()
                model.gate.set()
            elif how == "cancel":
                reader.cancel()
            await asyncio.wait([reader])
            model.gate.set()
            assert await tokens_of(neighbour) == SCRIPTS[1][5:65]
            await until(lambda: leaver.sequence.finish_reason != "")
            assert leaver.sequence.finish_reason == "abort"
            assert len(leaver.sequence.output) < 150
            assert SCRIPTS[2][: len(leaver.sequence)] == leaver.sequence.prompt + leaver.sequence.output

    run(main)


def test_what_has_come_before_an_abort_can_still_be_read() -> None:
    async def main() -> None:
        model = Gated()
        llm = engine(model)
        async with served(llm) as service:
            model.closes_at = 8
            ticket = service.submit(ask(llm, 3, LONG))
            await until(lambda: not model.gate.is_set())
            ticket.abort()
            model.gate.set()
            assert await tokens_of(ticket) == ticket.sequence.output == SCRIPTS[3][5 : len(ticket.sequence)]
            assert ticket.sequence.finish_reason == "abort"

    run(main)


def test_an_error_of_one_request_is_raised_to_its_reader_after_its_outputs() -> None:
    async def main() -> None:
        llm = engine(Gated({**SCRIPTS, 5: [*SCRIPTS[5][:9], -1]}))
        async with served(llm) as service:
            good, bad = service.submit(ask(llm, 4)), service.submit(ask(llm, 5))
            seen = []

            async def read() -> None:
                async for output in bad:
                    seen.append(output.token)

            with pytest.raises(BitNetError, match="not numbers"):
                await read()
            assert seen == [*SCRIPTS[5][5:9], None]
            assert await tokens_of(good) == SCRIPTS[4][5:25]

    run(main)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), MemoryError(), ResourceError("no room")])
def test_a_step_that_fails_ends_what_was_in_it_and_the_next_request_is_answered(error: Exception) -> None:
    async def main() -> None:
        model = Gated()
        llm = engine(model)
        async with served(llm) as service:
            model.gate.clear()
            tickets = [service.submit(ask(llm, first)) for first in range(1, 8)]  # of which four run at once
            await asyncio.to_thread(model.entered.wait, PATIENCE)
            model.failures.append(error)
            model.gate.set()
            ends = await asyncio.gather(*map(tokens_of, tickets), return_exceptions=True)
            failed = [end for end in ends if isinstance(end, BitNetError)]
            assert failed and all(end is error or end.__cause__ is error for end in failed)
            assert isinstance(failed[0], ResourceError) == (not isinstance(error, ZeroDivisionError))
            assert all(t.sequence.finish_reason in ("error", "length") and not t.sequence.blocks for t in tickets)
            assert await tokens_of(service.submit(ask(llm, 9))) == SCRIPTS[9][5:25]

    run(main)


def test_a_service_that_cannot_be_mended_says_so_to_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        model = Gated()
        llm = engine(model)
        service = Service(llm)
        model.closes_at = 5
        tickets = [service.submit(ask(llm, first, LONG)) for first in range(1, 8)]
        await until(lambda: not model.gate.is_set())
        monkeypatch.setattr(llm, "reset", lambda error: 1 / 0)
        model.failures.append(RuntimeError("a bug"))
        model.gate.set()
        for end in await asyncio.gather(*map(tokens_of, tickets), return_exceptions=True):
            assert isinstance(end, BitNetError) and "ZeroDivisionError" in end.message
        for _ in range(2):
            with pytest.raises(BitNetError, match="The engine failed"):
                service.submit(ask(llm, 9))
        service.close()

    run(main)


def test_closing_ends_what_is_in_flight_and_refuses_what_comes() -> None:
    async def main() -> None:
        model = Gated()
        llm = engine(model)
        service = Service(llm)
        model.closes_at = 5
        tickets = [service.submit(ask(llm, first, LONG)) for first in range(1, 8)]
        await until(lambda: not model.gate.is_set())
        closing = asyncio.create_task(asyncio.to_thread(service.close))
        late = service.run_alone(lambda: pytest.fail("nothing is begun any more"))
        await asyncio.sleep(0.01)
        model.gate.set()
        await closing
        for ticket in tickets:
            assert await tokens_of(ticket) == ticket.sequence.output
            assert ticket.sequence.finish_reason == "abort"
        for refused in (lambda: service.submit(ask(llm, 9)), lambda: service.run_alone(int)):
            with pytest.raises(BitNetError, match="closed"):
                refused()
        with pytest.raises((BitNetError, pytest.fail.Exception)):
            await late
        service.close()
        assert llm.scheduler.pool.free == llm.scheduler.pool.count

    run(main)


def test_the_loop_is_never_held_up_by_a_step() -> None:
    async def main() -> None:
        model = Gated()
        llm = engine(model)
        async with served(llm) as service:
            model.gate.clear()
            first = service.submit(ask(llm, 1))
            await asyncio.to_thread(model.entered.wait, PATIENCE)
            # The engine is in a step and holds its lock: everything at the door must return all the same.
            second, third = service.submit(ask(llm, 2)), service.submit(ask(llm, 3))
            answer = service.run_alone(lambda: 42)
            third.abort()
            assert (service.running, service.waiting) == (1, 2)
            model.gate.set()
            assert await tokens_of(first) == SCRIPTS[1][5:25]
            assert await tokens_of(second) == SCRIPTS[2][5:25]
            assert await tokens_of(third) == [] and third.sequence.finish_reason == "abort"
            assert await answer == 42

    run(main)


def test_functions_run_in_the_engines_thread_and_raise_to_whoever_asked() -> None:
    async def main() -> None:
        llm = engine()
        async with served(llm) as service:
            ticket = service.submit(ask(llm, 1, LONG))
            names = await asyncio.gather(*(service.run_alone(lambda: threading.current_thread().name) for _ in "abc"))
            assert names == ["bitnet-engine"] * 3
            with pytest.raises(ZeroDivisionError):
                await service.run_alone(lambda: 1 // 0)
            assert await tokens_of(ticket) == SCRIPTS[1][5 : 5 + LONG]

    run(main)


def test_an_idle_service_takes_no_time_of_the_processor() -> None:
    async def main() -> None:
        llm = engine()
        async with served(llm) as service:
            await tokens_of(service.submit(ask(llm, 1)))
            used = time.thread_time  # of the engine's thread, asked for within it
            before = await service.run_alone(used)
            await asyncio.sleep(0.5)
            assert await service.run_alone(used) - before < 0.1

    run(main)


def test_a_loop_that_is_gone_leaves_nothing_behind() -> None:
    model = Gated()
    llm = engine(model)
    service = Service(llm)

    async def leave() -> Ticket:
        model.gate.clear()
        return service.submit(ask(llm, 1, LONG))

    orphan = asyncio.run(leave())
    model.gate.set()

    async def main() -> None:
        assert await tokens_of(service.submit(ask(llm, 2, 100))) == SCRIPTS[2][5:105]
        assert orphan.sequence.finish_reason == "abort"

    run(main)
    service.close()


def test_callers_of_run_and_of_the_service_take_turns() -> None:
    model = Gated()
    llm = engine(model)

    def plain() -> list[list[int]]:
        return [[o.token or 0 for o in llm.run([llm.add_request(SCRIPTS[first][:5], greedy())])] for first in (6, 7, 8)]

    async def main() -> None:
        async with served(llm) as service:
            other = asyncio.create_task(asyncio.to_thread(plain))
            for first in (1, 2, 3):
                assert await tokens_of(service.submit(ask(llm, first))) == SCRIPTS[first][5:25]
            assert await other == [SCRIPTS[first][5:25] for first in (6, 7, 8)]

    run(main)


def threads() -> Iterator[threading.Thread]:
    return (thread for thread in threading.enumerate() if thread.name == "bitnet-engine")


def test_a_service_that_is_forgotten_ends_its_thread() -> None:
    before = set(threads())

    async def main() -> None:
        llm = engine()
        await tokens_of(Service(llm).submit(ask(llm, 1)))

    run(main)
    gc.collect()
    assert not set(threads()) - before


def test_a_program_that_forgets_to_close_ends_all_the_same() -> None:
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "import asyncio, test_service as t\n"
        "llm = t.engine(); service = t.Service(llm)\n"
        "async def main():\n"
        "    global ticket\n"
        "    ticket = service.submit(t.ask(llm, 1, 240))\n"
        "    async for _ in ticket: break\n"
        "asyncio.run(main()); print('done')"
    )
    here = Path(__file__).parent
    environment = {"PYTHONPATH": f"{here}:{here.parent}"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=PATIENCE)
    assert (found.returncode, found.stdout.strip(), found.stderr) == (0, b"done", b"")


def test_awaitables_of_the_door_are_cancelled_without_harm() -> None:
    async def main() -> None:
        model = Gated()
        llm = engine(model)
        async with served(llm) as service:
            model.gate.clear()
            ticket = service.submit(ask(llm, 1))
            called: list[int] = []
            answer: Awaitable[None] = service.run_alone(lambda: called.append(1))
            asyncio.ensure_future(answer).cancel()
            model.gate.set()
            assert await tokens_of(ticket) == SCRIPTS[1][5:25]
            assert await service.run_alone(lambda: 1) == 1

    run(main)
