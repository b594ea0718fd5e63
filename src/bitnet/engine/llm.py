"""The engine: requests in, tokens out, many at once."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

import numpy as np

from bitnet.backends.base import BLOCK_SIZE, KV_TYPES, Row
from bitnet.engine.constraint import Constraint, allowed_tokens, follow
from bitnet.engine.draft import Drafter
from bitnet.engine.kv_cache import BlockPool
from bitnet.engine.pace import Pace
from bitnet.engine.runner import Runner, is_scored, wanted_rows
from bitnet.engine.sampling import SamplingParams, check, sample, token_logprob
from bitnet.engine.scheduler import Chunk, Scheduler
from bitnet.engine.sequence import NEVER, Sequence, Status
from bitnet.engine.speculation import Speculator
from bitnet.errors import BitNetError, ContextError, ParameterError
from bitnet.models import HEADS, Decoder
from bitnet.tokenizer import StopStrings, StreamDecoder, Tokenizer


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of the engine.

    ctx_size: positions a sequence may have; 0 takes the model's own maximum. max_sequences: how many run at once.
    chunk: tokens in a step at most. kv: "f16", "f32" or "int8", the type of the cached keys and values; int8 halves
    their memory, for a rounding. head: "screen" keeps a cheap copy of the output head that finds the likeliest tokens,
    exactly, for fewer bytes; "auto" does so where that pays and fits; "full" never.
    draft_tokens: guesses at a sequence's next tokens in a step at most, where there is a drafter.
    ctx_overflow: "error" refuses a prompt that is too long and ends a text where the context is full; "slide" drops
    what lies between the first ctx_keep tokens and the latest (a few first tokens matter, arXiv:2309.17453).
    prefix_cache: keep what was computed, for sequences that begin with the same tokens; it changes no result.
    """

    ctx_size: int = 4096
    max_sequences: int = 8
    chunk: int = 512
    kv: str = "f16"
    head: str = "auto"
    draft_tokens: int = 3
    ctx_overflow: str = "error"
    ctx_keep: int = 4
    prefix_cache: bool = True
    kv_blocks: int = field(default=0, metadata={"help": "blocks of the cache; 0: enough for every sequence"})

    def __post_init__(self) -> None:
        least = {"ctx_size": 0, "max_sequences": 1, "chunk": 1, "kv_blocks": 0, "draft_tokens": 1, "ctx_keep": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not low <= value <= 1 << 28:
                raise ParameterError(f"{name} is {value}; expected {low} to {1 << 28}.")
        if self.kv not in KV_TYPES:
            raise ParameterError(f"kv is {self.kv!r}; expected 'f16', 'f32' or 'int8'.")
        if self.head not in HEADS:
            raise ParameterError(f"head is {self.head!r}; expected 'auto', 'full' or 'screen'.")
        if self.ctx_overflow not in ("error", "slide"):
            raise ParameterError(f"ctx_overflow is {self.ctx_overflow!r}; expected 'error' or 'slide'.")

    def sizes(self, longest: int) -> tuple[int, int]:
        """Positions that a sequence of a model with this maximum may have, and blocks of the cache."""
        ctx_size = min(self.ctx_size or longest, longest)
        blocks = self.kv_blocks or self.max_sequences * -(-ctx_size // BLOCK_SIZE)
        return min(ctx_size, blocks * BLOCK_SIZE), blocks


@dataclass(frozen=True, slots=True)
class Output:
    """What a step added to a sequence: text that is safe to show, and the token unless the step only finished it."""

    sequence: Sequence
    text: str
    token: int | None


class LLM:
    """Continuous batching over one model.

    The same request gives the same tokens whatever else runs beside it: sampling draws from the sequence's own random
    numbers, and the backend's results do not depend on how tokens are grouped into steps. A drafter changes no token
    either: speculation.py says why.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        config: EngineConfig = EngineConfig(),
        drafter: Drafter | None = None,
    ) -> None:
        self.model, self.tokenizer, self.config = model, tokenizer, config
        self.ctx_size, blocks = config.sizes(model.config.max_position_embeddings)
        if self.ctx_size < 2 and config.ctx_overflow == "slide":
            raise ParameterError("A context of one token cannot slide.", "Raise --ctx-size.")
        self.runner = Runner(model, blocks, config.kv, config.head)
        self.blocks = blocks
        self.scheduler = self._new_scheduler()
        self.speculator = Speculator(drafter, config.draft_tokens, self.scheduler.chunk) if drafter else None
        self._ids = itertools.count()
        self._lock = threading.RLock()  # over everything below the door: requests may come from several threads
        self._text: dict[Sequence, Text] = {}

    def _new_scheduler(self) -> Scheduler:
        return Scheduler(BlockPool(self.blocks, self.config.prefix_cache), self.config.max_sequences, self.config.chunk)

    def prepare(
        self,
        prompt: Ids[int],
        params: SamplingParams,
        *,
        score_from: int = NEVER,
        keep: int | None = None,
        constraint: Constraint | None = None,
    ) -> Sequence:
        """A sequence to be queued with `add`; takes no lock, so that an event loop may call it while a step runs.

        ContextError when the prompt leaves no room for a single new token, unless the context slides. keep: the first
        tokens that stay then, in place of the configuration's ctx_keep. A prompt that is scored must fit.
        score_from: the first position whose logits are wanted: tokens after it get their log-probabilities. constraint:
        what the tokens after the prompt must satisfy; the sequence's own.
        """
        limit = self.ctx_size - (params.max_tokens != 0)
        if not prompt:
            raise ParameterError("The prompt is empty and the model has no begin-of-text token.")
        keep = self.config.ctx_keep if keep is None else max(0, keep)
        kept = min(keep, (self.ctx_size - 1) // 2)  # or nothing could slide
        sequence = Sequence(next(self._ids), list(prompt), params, score_from, keep=kept, constraint=constraint)
        if len(prompt) > limit:
            if not self._slides(sequence):
                raise self._too_long(sequence)
            sequence.slide(self.ctx_size)
        vocabulary = self.model.config.vocab_size
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise ParameterError(f"The prompt has a token id outside 0 to {vocabulary - 1}.")
        if not all(0 <= token < vocabulary for token, _ in params.logit_bias):
            raise ParameterError(f"logit_bias has a token id outside 0 to {vocabulary - 1}.")
        return sequence

    def add(self, sequence: Sequence) -> None:
        """Queue a prepared sequence."""
        with self._lock:
            self._text[sequence] = Text(self.tokenizer, sequence.params.stop)
            self.scheduler.add(sequence)

    def add_request(
        self, prompt: Ids[int], params: SamplingParams, score_from: int = NEVER, keep: int | None = None
    ) -> Sequence:
        """`prepare` and `add`."""
        sequence = self.prepare(prompt, params, score_from=score_from, keep=keep)
        self.add(sequence)
        return sequence

    def _too_long(self, sequence: Sequence) -> ContextError:
        longest = self.model.config.max_position_embeddings
        larger = f", or raise --ctx-size: this model takes {longest}" if self.ctx_size < longest else ""
        slide = "" if sequence.scored else ". With --ctx-overflow slide it loses its middle"
        return ContextError(
            f"The prompt has {len(sequence.prompt)} tokens; the context holds {self.ctx_size}.",
            f"Shorten the prompt{larger}{slide}.",
        )

    def abort(self, sequence: Sequence) -> None:
        """Stop a sequence, queued or running; its blocks are free at once."""
        with self._lock:
            if sequence.status is not Status.FINISHED:
                self._end(sequence, "abort")

    def reset(self, error: BitNetError) -> None:
        """After a step that failed halfway: every sequence ends with `error`, and the engine is as if new."""
        with self._lock:
            for sequence in list(self._text):
                sequence.error = error
                sequence.blocks.clear()
                sequence.finish("error")
                sequence.unread.append(Output(sequence, "", None))
                if self.speculator is not None:
                    self.speculator.forget(sequence)
            self._text.clear()
            before, self.scheduler = self.scheduler.pool, self._new_scheduler()
            self.scheduler.pool.queries, self.scheduler.pool.hits = before.queries, before.hits

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def step(self) -> list[Output]:
        """Run the model once and return what it gave; empty where only prompts were read."""
        with self._lock:
            return self._step()

    def _step(self, pace: Pace | None = None) -> list[Output]:
        outputs, began = self._expire(), time.perf_counter()
        chunks = self.scheduler.schedule(None if pace is None else pace.tokens)
        if not chunks:
            return outputs
        if self.speculator is not None:
            chunks = self.speculator.add_drafts(chunks, self.scheduler.pool, self._left)
        for chunk, logits in zip(chunks, self.runner.run(chunks, draw=True), strict=True):
            chunk.sequence.computed = chunk.end
            try:
                score(chunk, logits)
                if chunk.complete:
                    for output in self._verify(chunk, logits[-1 - len(chunk.drafts) :]):
                        outputs.append(output)
                if chunk.sequence.status is Status.RUNNING:
                    self.scheduler.pool.offer(chunk.sequence)
            except BitNetError as error:  # of this sequence alone: its neighbours go on
                chunk.sequence.error = error
                outputs.append(self._finish(chunk.sequence, "error", None, ""))
        if pace is not None:
            pace.learn(sum(chunk.end - chunk.start for chunk in chunks if chunk.prefill), time.perf_counter() - began)
        return outputs

    def _expire(self) -> list[Output]:
        """Ends the sequences whose time is over, queued or running, with what text was held back."""
        now, queues = time.perf_counter(), (self.scheduler.running, self.scheduler.waiting)
        late = [s for queue in queues for s in queue if s.deadline is not None and s.deadline <= now]
        return [self._finish(sequence, "deadline", None, self._text[sequence].flush()) for sequence in late]

    def advance(self, sequences: Collection[Sequence], pace: Pace | None = None) -> tuple[list[Output], list[Sequence]]:
        """The next outputs of `sequences`, after a step if none are there yet, and which of them are finished.

        Others' outputs are kept until somebody asks for them, so several loops in several threads may take turns.
        pace: how much of prompts the step reads; None: as much as the configuration's chunk has room for.
        """
        with self._lock:
            if not any(sequence.unread for sequence in sequences):
                for output in self._step(pace):
                    output.sequence.unread.append(output)
            ready = [output for sequence in sequences for output in sequence.take()]
            return ready, [sequence for sequence in sequences if sequence.status is Status.FINISHED]

    def run(self, sequences: Iterable[Sequence]) -> Iterator[Output]:
        """Step until `sequences` are finished, giving their outputs as they come; aborts them if the caller leaves.

        Raises the error of a sequence that ended with one, after the others are finished.
        """
        given = list(sequences)
        pending = dict.fromkeys(given)
        try:
            while pending:
                ready, finished = self.advance(pending)
                yield from ready
                for sequence in finished:
                    del pending[sequence]
        finally:
            for sequence in pending:
                self.abort(sequence)
        for sequence in given:
            if sequence.error is not None:
                raise sequence.error

    def _verify(self, chunk: Chunk, rows: Ids[Row]) -> Iterator[Output]:
        """The sequence's next token, and another for each draft that turns out to be what was sampled."""
        sequence = chunk.sequence
        sequence.steps += 1
        sequence.drafted += len(chunk.drafts)
        for row, draft in zip(rows, (*chunk.drafts, -1), strict=True):
            output = self._advance(sequence, row)
            yield output
            sequence.accepted += output.token == draft
            if sequence.status is Status.FINISHED:
                return
            if output.token != draft:
                break
            sequence.computed += 1
        if self.speculator is not None:
            self.speculator.learn(sequence, len(chunk.drafts), sequence.computed - chunk.end)
        if len(sequence) >= self.ctx_size:
            self._slide(sequence)
        self.scheduler.pool.trim(sequence, len(sequence))

    def _slide(self, sequence: Sequence) -> None:
        sequence.slide(self.ctx_size)
        self.scheduler.pool.rewrite(sequence)
        if self.speculator is not None:
            self.speculator.forget(sequence)

    def _slides(self, sequence: Sequence) -> bool:
        return self.config.ctx_overflow == "slide" and not sequence.scored

    def _left(self, sequence: Sequence) -> int:
        """How many tokens the sequence can get before it ends or slides."""
        room, most = self.ctx_size - len(sequence), sequence.params.max_tokens
        return room if most is None else min(room, most - len(sequence.output))

    def _advance(self, sequence: Sequence, row: Row) -> Output:
        """Choose the sequence's next token, unless the backend has, and see whether that ends it."""
        params, text = sequence.params, self._text[sequence]
        if params.max_tokens == 0:
            return self._finish(sequence, "length", None, "")
        constraint, number = sequence.constraint, sequence.next_number()
        if isinstance(row, int):
            token = row
        else:
            allowed = None if constraint is None else allowed_tokens(constraint, len(row))
            token = sample(row, params, sequence.prompt_counts, sequence.counts, number, allowed)
            if params.logprobs is not None:
                sequence.logprobs.append(token_logprob(np.asarray(row), token, params.logprobs))
        sequence.append(token)
        complete = constraint is not None and follow(constraint, token)
        if token in self.tokenizer.eos_ids and not params.ignore_eos:
            return self._finish(sequence, "stop", token, text.flush())
        shown = text.push(token)
        if text.stopped or complete:
            sequence.stopped_by = text.matched
            return self._finish(sequence, "stop", token, shown + text.flush())
        full = len(sequence) >= self.ctx_size and not self._slides(sequence)
        if full or len(sequence.output) == params.max_tokens:
            return self._finish(sequence, "length", token, shown + text.flush())
        return Output(sequence, shown, token)

    def _finish(self, sequence: Sequence, reason: str, token: int | None, text: str) -> Output:
        self._end(sequence, reason)
        return Output(sequence, text, token)

    def _end(self, sequence: Sequence, reason: str) -> None:
        if self._text.pop(sequence, None) is not None:
            self.scheduler.finish(sequence, reason)
        else:  # it was never queued
            sequence.finish(reason)
        if self.speculator is not None:
            self.speculator.forget(sequence)


class Text:
    """The text of a sequence as it grows: whole characters only, and nothing of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._decoder, self._stop = StreamDecoder(tokenizer, strip_space=False), StopStrings(stop)

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    @property
    def matched(self) -> str | None:
        return self._stop.matched

    def push(self, token: int) -> str:
        return self._stop.push(self._decoder.push(token))

    def flush(self) -> str:
        return self._stop.push(self._decoder.flush()) + self._stop.flush()


def score(chunk: Chunk, rows: Ids[Row]) -> None:
    """Keep the log-probability of each prompt token that this chunk's logits predict."""
    sequence = chunk.sequence
    if not is_scored(chunk):
        return
    logits = np.asarray(rows)
    check(logits)
    for row, logit in zip(wanted_rows(chunk), logits, strict=True):
        position = chunk.start + row + 1
        if sequence.score_from + len(sequence.prompt_logprobs) < position < len(sequence.prompt):
            token = sequence.prompt[position]
            sequence.prompt_logprobs.append(token_logprob(logit, token, sequence.params.logprobs or 0))
