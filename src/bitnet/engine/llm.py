"""The engine: requests in, tokens out, many at once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from bitnet.backends.base import BLOCK_SIZE, KV_TYPES
from bitnet.engine.kv_cache import BlockPool
from bitnet.engine.runner import Runner, wanted_rows
from bitnet.engine.sampling import Floats, SamplingParams, check, sample, token_logprob
from bitnet.engine.scheduler import Chunk, Scheduler
from bitnet.engine.sequence import Sequence, Status
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
    """

    ctx_size: int = 4096
    max_sequences: int = 8
    chunk: int = 512
    kv: str = "f16"
    head: str = "auto"
    kv_blocks: int = field(default=0, metadata={"help": "blocks of the cache; 0: enough for every sequence"})

    def __post_init__(self) -> None:
        for name, low in (("ctx_size", 0), ("max_sequences", 1), ("chunk", 1), ("kv_blocks", 0)):
            value = getattr(self, name)
            if not low <= value <= 1 << 28:
                raise ParameterError(f"{name} is {value}; expected {low} to {1 << 28}.")
        if self.kv not in KV_TYPES:
            raise ParameterError(f"kv is {self.kv!r}; expected 'f16', 'f32' or 'int8'.")
        if self.head not in HEADS:
            raise ParameterError(f"head is {self.head!r}; expected 'auto', 'full' or 'screen'.")


@dataclass(frozen=True, slots=True)
class Output:
    """What a step added to a sequence: text that is safe to show, and the token unless the step only finished it."""

    sequence: Sequence
    text: str
    token: int | None


class LLM:
    """Continuous batching over one model.

    The same request gives the same tokens whatever else runs beside it: sampling draws from the sequence's own random
    numbers, and the backend's results do not depend on how tokens are grouped into steps.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, config: EngineConfig = EngineConfig()) -> None:
        longest = model.config.max_position_embeddings
        self.model, self.tokenizer = model, tokenizer
        self.ctx_size = min(config.ctx_size or longest, longest)
        blocks = config.kv_blocks or config.max_sequences * -(-self.ctx_size // BLOCK_SIZE)
        self.ctx_size = min(self.ctx_size, blocks * BLOCK_SIZE)
        self.runner = Runner(model, blocks, config.kv, config.head)
        self.scheduler = Scheduler(BlockPool(blocks), config.max_sequences, config.chunk)
        self._ids = itertools.count()
        self._lock = threading.RLock()  # over everything below the door: requests may come from several threads
        self._text: dict[Sequence, Text] = {}

    def add_request(self, prompt: Ids[int], params: SamplingParams, score_prompt: bool = False) -> Sequence:
        """Queue a prompt of token ids; ContextError when it leaves no room for a single new token."""
        limit = self.ctx_size - (params.max_tokens != 0)
        if not prompt:
            raise ParameterError("The prompt is empty and the model has no begin-of-text token.")
        if len(prompt) > limit:
            raise ContextError(
                f"The prompt has {len(prompt)} tokens; the context holds {self.ctx_size}.",
                "Shorten the prompt or raise --ctx-size.",
            )
        vocabulary = self.model.config.vocab_size
        if not all(0 <= token < vocabulary for token in prompt):
            raise ParameterError(f"The prompt has a token id outside 0 to {vocabulary - 1}.")
        sequence = Sequence(next(self._ids), list(prompt), params, score_prompt)
        with self._lock:
            self._text[sequence] = Text(self.tokenizer, params.stop)
            self.scheduler.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        """Stop a sequence, queued or running; its blocks are free at once."""
        with self._lock:
            if sequence.status is not Status.FINISHED:
                self.scheduler.finish(sequence, "abort")
                self._text.pop(sequence, None)

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    def step(self) -> list[Output]:
        """Run the model once and return what it gave; empty where only prompts were read."""
        with self._lock:
            return self._step()

    def _step(self) -> list[Output]:
        chunks = self.scheduler.schedule()
        if not chunks:
            return []
        outputs = []
        for chunk, logits in zip(chunks, self.runner.run(chunks), strict=True):
            chunk.sequence.computed = chunk.end
            try:
                score(chunk, logits)
                if chunk.end == len(chunk.sequence):
                    outputs.append(self._advance(chunk.sequence, logits[-1]))
            except BitNetError as error:  # of this sequence alone: its neighbours go on
                chunk.sequence.error = error
                outputs.append(self._finish(chunk.sequence, "error", None, ""))
        return outputs

    def run(self, sequences: Iterable[Sequence]) -> Iterator[Output]:
        """Step until `sequences` are finished, giving their outputs as they come; aborts them if the caller leaves.

        Several of these loops may take turns, in one thread or in several: what a step gives to another loop's sequence
        is kept until that one asks.
        Raises the error of a sequence that ended with one, after the others are finished.
        """
        given = list(sequences)
        pending = dict.fromkeys(given)
        try:
            while pending:
                with self._lock:
                    if not any(sequence.unread for sequence in pending):
                        for output in self._step():
                            output.sequence.unread.append(output)
                    ready = [output for sequence in pending for output in sequence.take()]
                    finished = [sequence for sequence in pending if sequence.status is Status.FINISHED]
                yield from ready
                for sequence in finished:
                    del pending[sequence]
        finally:
            for sequence in pending:
                self.abort(sequence)
        for sequence in given:
            if sequence.error is not None:
                raise sequence.error

    def _advance(self, sequence: Sequence, logits: Floats) -> Output:
        """Choose the sequence's next token, and see whether that ends it."""
        params, text = sequence.params, self._text[sequence]
        if params.max_tokens == 0:
            return self._finish(sequence, "length", None, "")
        token = sample(logits, params, sequence.prompt_counts, sequence.counts, sequence.random.random())
        if params.logprobs is not None:
            sequence.logprobs.append(token_logprob(logits, token, params.logprobs))
        sequence.append(token)
        if token in self.tokenizer.eos_ids and not params.ignore_eos:
            return self._finish(sequence, "stop", token, text.flush())
        shown = text.push(token)
        if text.stopped:
            return self._finish(sequence, "stop", token, shown)
        if len(sequence.output) == params.max_tokens or len(sequence) >= self.ctx_size:
            return self._finish(sequence, "length", token, shown + text.flush())
        return Output(sequence, shown, token)

    def _finish(self, sequence: Sequence, reason: str, token: int | None, text: str) -> Output:
        self.scheduler.finish(sequence, reason)
        self._text.pop(sequence, None)
        return Output(sequence, text, token)


class Text:
    """The text of a sequence as it grows: whole characters only, and nothing of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._decoder, self._stop = StreamDecoder(tokenizer, strip_space=False), StopStrings(stop)

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def push(self, token: int) -> str:
        return self._stop.push(self._decoder.push(token))

    def flush(self) -> str:
        return self._stop.push(self._decoder.flush()) + self._stop.flush()


def score(chunk: Chunk, logits: Floats) -> None:
    """Keep the log-probability of each prompt token that this chunk's logits predict."""
    sequence = chunk.sequence
    if not sequence.score_prompt:
        return
    check(logits)
    for row, logit in zip(wanted_rows(chunk), logits, strict=True):
        position = chunk.start + row + 1
        if len(sequence.prompt_logprobs) < position < len(sequence.prompt):
            token = sequence.prompt[position]
            sequence.prompt_logprobs.append(token_logprob(logit, token, sequence.params.logprobs or 0))
