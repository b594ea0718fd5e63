"""The one road from any dialect to the engine and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from bitnet.engine import SamplingParams, Sequence, TokenLogprob
from bitnet.engine.constraint import Constraint
from bitnet.engine.sequence import NEVER
from bitnet.engine.service import Ticket
from bitnet.errors import BitNetError
from bitnet.server.admission import Place
from bitnet.server.context import Context
from bitnet.server.errors import ApiError
from bitnet.server.registry import Served


@dataclass(frozen=True, slots=True)
class Generation:
    """What a dialect asks for: `n` texts after each prompt of token ids. constraint: makes one for each text."""

    served: Served
    prompts: Items[Items[int]]
    params: SamplingParams
    n: int = 1
    constraint: Callable[[], Constraint] | None = None
    score_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of a text. index: prompt * n + choice. token: None where a step only gave text that was held back.

    The last piece of each text has its finish_reason ("stop", "length" or "deadline") and nothing else.
    """

    index: int
    text: str
    token: int | None
    logprob: TokenLogprob | None
    finish_reason: str | None
    sequence: Sequence


async def generate(request: Generation, context: Context) -> Run:
    """Wait for a turn and start: `async for piece in await generate(...)`, or `close()` what is not read to its end.

    Raises ApiError where there is no turn, ParameterError and ContextError for what no turn would help.
    """
    served = request.served
    check_lengths(request)
    sequences = [
        served.model.llm.prepare(
            prompt,
            choice_params(request.params, choice),
            score_from=0 if request.score_prompt else NEVER,
            constraint=request.constraint() if request.constraint else None,
        )
        for prompt in request.prompts
        for choice in range(request.n)
    ]
    limit = context.server.settings.request_timeout
    metrics = context.server.metrics.of(served.name)
    with served.in_use():
        try:
            place = await served.admission.enter(len(sequences))
        except ApiError:
            metrics.rejected(len(sequences))
            raise
        now = time.perf_counter()
        for sequence in sequences:
            sequence.arrived = now  # at the engine
            sequence.deadline = context.arrived + limit if limit else None
        metrics.queue_time.observe(now - context.arrived)
        return Run(request, context, sequences, place)


def choice_params(params: SamplingParams, choice: int) -> SamplingParams:
    """The same seed would say the same `n` times."""
    return params if params.seed is None or not choice else replace(params, seed=(params.seed + choice) % 2**64)


def check_lengths(request: Generation) -> None:
    """The engine checks this too; here both counts are told as llama.cpp tells them."""
    if request.served.model.llm.config.ctx_overflow == "error" or request.score_prompt:
        for prompt in request.prompts:
            check_length(request.served, prompt, int(request.params.max_tokens != 0))


def check_length(served: Served, prompt: Items[int], more: int) -> None:
    """Whether the prompt and `more` tokens after it fit into the context."""
    size = served.model.llm.ctx_size
    if len(prompt) + more > size:
        raise ApiError(
            400,
            f"This model's maximum context length is {size} tokens; the prompt has {len(prompt)}.",
            type="exceed_context_size_error",
            code="context_length_exceeded",
            n_prompt_tokens=len(prompt),
            n_ctx=size,
        )


def told_reason(reason: str | None) -> str | None:
    """OpenAI knows no deadline; an answer that ran into one was cut short, like one that ran out of tokens."""
    return "length" if reason == "deadline" else reason


class Run:
    """Sequences on their way. Each is read as fast as the engine writes, however slowly the client reads: its place is
    free when it ends, and what waits here is bounded by the context."""

    def __init__(self, request: Generation, context: Context, sequences: list[Sequence], place: Place) -> None:
        self.request, self.context, self.sequences = request, context, sequences
        self._place, self._metrics = place, context.server.metrics.of(request.served.name)
        self._pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        self._hold = request.served.in_use()
        self._hold.__enter__()
        self._tickets: list[Ticket] = []
        try:
            self._tickets = [request.served.service.submit(sequence) for sequence in sequences]
        except BitNetError:
            self._place.close()
            self._hold.__exit__(None, None, None)
            raise ApiError(503, "The model is being unloaded.", retry_after=1) from None
        self._left = len(sequences)
        self._pumps = [asyncio.ensure_future(self._pump(i, ticket)) for i, ticket in enumerate(self._tickets)]
        for pump, sequence in zip(self._pumps, sequences, strict=True):
            pump.add_done_callback(partial(self._ended, sequence))

    async def __aiter__(self) -> AsyncIterator[Piece]:
        unfinished = len(self.sequences)
        try:
            while unfinished:
                piece = await self._pieces.get()
                if isinstance(piece, BaseException):
                    raise piece
                unfinished -= piece.finish_reason is not None
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """End what still runs."""
        for ticket in self._tickets:
            ticket.abort()
        for pump in self._pumps:
            pump.cancel()

    async def _pump(self, index: int, ticket: Ticket) -> None:
        sequence, count = ticket.sequence, 0
        latency = self._metrics.latency(self.context.arrived)
        try:
            async for output in ticket:
                logprob = None
                if output.token is not None:
                    latency.token()
                    if sequence.params.logprobs is not None:
                        logprob = sequence.logprobs[count]
                    count += 1
                if output.text or output.token is not None:
                    self._pieces.put_nowait(Piece(index, output.text, output.token, logprob, None, sequence))
            self._pieces.put_nowait(self._end(index, sequence))
        except BitNetError as error:
            self._pieces.put_nowait(error)

    def _end(self, index: int, sequence: Sequence) -> Piece | ApiError:
        reason = sequence.finish_reason
        if reason == "deadline" and not sequence.output:
            return ApiError(503, "The time for this request ran out before its first token.", code="deadline_exceeded")
        if reason not in ("stop", "length", "deadline"):
            return ApiError(503, "The model was unloaded.", retry_after=1)
        return Piece(index, "", None, None, reason, sequence)

    def _ended(self, sequence: Sequence, pump: asyncio.Task[None]) -> None:
        self._metrics.finished(sequence, time.perf_counter() - self.context.arrived)
        self._place.finished()
        self._left -= 1
        if not self._left:
            self._hold.__exit__(None, None, None)

    def usage(self) -> Usage:
        firsts = self.sequences[:: self.request.n]  # one of each prompt
        return Usage(
            sum(len(sequence.prompt) for sequence in firsts),
            sum(len(sequence.output) for sequence in self.sequences),
            sum(sequence.cached for sequence in firsts),
        )

    def timings(self) -> dict[str, Any]:
        return timings(self.sequences, self.usage())


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens. cached: those of the prompt that were computed for an earlier request."""

    prompt: int
    completion: int
    cached: int

    def openai(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


def timings(sequences: Items[Sequence], usage: Usage) -> dict[str, Any]:
    """As llama.cpp's server has them, of all sequences together. cache_miss: why no more was cached (of the
    first)."""
    started = min(sequence.arrived for sequence in sequences)
    ended = max(sequence.finished or started for sequence in sequences)
    first = max(sequence.first_token or ended for sequence in sequences)
    computed = usage.prompt - usage.cached
    found: dict[str, Any] = {"cache_n": usage.cached, "cache_miss": sequences[0].miss}
    for name, count, seconds in (("prompt", computed, first - started), ("predicted", usage.completion, ended - first)):
        seconds = max(seconds, 1e-9)
        found |= {
            f"{name}_n": count,
            f"{name}_ms": 1000 * seconds,
            f"{name}_per_token_ms": 1000 * seconds / max(1, count),
            f"{name}_per_second": count / seconds,
        }
    if any(sequence.drafted for sequence in sequences):
        found["draft_n"] = sum(sequence.drafted for sequence in sequences)
        found["draft_n_accepted"] = sum(sequence.accepted for sequence in sequences)
    return found
