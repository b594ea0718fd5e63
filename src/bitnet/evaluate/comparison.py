"""Two models side by side: how fast, how large, how good, and how alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import bitnet.formats
from bitnet import backends
from bitnet.backends.base import BLOCK_SIZE, Step
from bitnet.bench.engines import Bitnet
from bitnet.bench.machine import use_threads
from bitnet.bench.speed import Sample, Test
from bitnet.bench.suite import Plan, rounds
from bitnet.convert.verify import PROMPTS, alike_at_first, greedy
from bitnet.evaluate.divergence import Divergence, divergence
from bitnet.evaluate.perplexity import Perplexity, perplexity
from bitnet.formats.compiled import CompiledFile
from bitnet.models import Decoder
from bitnet.models.load import Progress
from bitnet.tokenizer import Tokenizer

WRITTEN = 64  # tokens that each model writes after each prompt


@dataclass(frozen=True, slots=True)
class Subject:
    """One side. rates: tokens a second of each test, a list of repetitions. resident: bytes of weights in memory.
    compile_s: that a compiled model's library was made in."""

    path: Path
    backend: str
    parameters: int
    file_bytes: int
    resident: int | None
    compile_s: float | None
    load_s: float | None
    rates: dict[str, list[float]]
    perplexity: Perplexity | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """subjects: the base, and what is compared with it. divergence: on the text, where both have the same tokens.
    alike: of `written` greedy tokens how many were the same until the first that was not."""

    subjects: tuple[Subject, Subject]
    divergence: Divergence | None
    alike: int
    written: int

    def ratio(self, test: str) -> float:
        """How many times faster the second is, the median of the pairs."""
        base, other = (subject.rates[test] for subject in self.subjects)
        return float(np.median([b / a for a, b in zip(base, other, strict=True)]))


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    engine: Bitnet
    tokenizer: Tokenizer
    file_bytes: int
    compile_s: float | None


@dataclass(frozen=True, slots=True)
class Options:
    n_prompt: int = 128
    n_gen: int = 32
    repetitions: int = 3
    threads: int = 0
    ctx: int = 512
    kv: str = "f16"
    weights: str = "auto"
    force: bool = False


def compare(
    sides: Sequence[tuple[Path, str]],
    text: str,
    options: Options = Options(),
    loading: Progress = lambda done, total: None,
    progress: Callable[[str], None] = lambda doing: None,
) -> Comparison:
    """sides: path and backend of the base and of the other; both are in memory at once, and measured in turns.

    text: what perplexities and the divergence are of; "" measures none.
    """
    tests = (Test(options.n_prompt, 0), Test(0, options.n_gen))
    plan = Plan(tests, (options.threads,), options.repetitions, kv=options.kv, force=options.force)
    plan.check()
    with ExitStack() as stack:
        loaded = [load(path, backend, plan, options, stack, loading) for path, backend in sides]
        base, other = (each.engine for each in loaded)
        tokenizer, other_tokenizer = (each.tokenizer for each in loaded)
        threads = use_threads("cpu", options.threads)
        samples = rounds([base, other], [(threads, test) for test in tests], plan, progress, progress)
        progress("reading the text")
        quality = [quality_of(each.engine.model, each.tokenizer, text, options) for each in loaded]
        distance = None
        if text and same_tokens(tokenizer, other_tokenizer, text):
            distance = divergence(other.model, base.model, tokenizer, tokenizer.encode(text), options.ctx, options.kv)
        progress("writing")
        alike, written = greedy_agreement([base.model, other.model], [tokenizer, other_tokenizer])
        first, second = (
            Subject(
                path,
                each.engine.model.ops.name,
                each.engine.facts.model_n_params,
                each.file_bytes,
                each.engine.facts.resident_bytes,
                each.compile_s,
                each.engine.facts.load_s,
                {test.name: [rate(test, one) for one in samples[each.engine, (threads, test)]] for test in tests},
                found,
            )
            for (path, _), each, found in zip(sides, loaded, quality, strict=True)
        )
    return Comparison((first, second), distance, alike, written)


def load(path: Path, backend: str, plan: Plan, options: Options, stack: ExitStack, loading: Progress) -> Loaded:
    with bitnet.formats.open(path) as checkpoint:
        engine = Bitnet(
            checkpoint,
            positions=plan.positions,
            chunk=plan.n_batch,
            kv=options.kv,
            head="auto",
            ops=backends.make(backend, options.weights),
            force=options.force,
            progress=loading,
        )
        stack.enter_context(closing(engine))
        tokenizer = Tokenizer.from_checkpoint(checkpoint)
        if isinstance(checkpoint, CompiledFile):
            return Loaded(engine, tokenizer, path.stat().st_size, checkpoint.compile_s)
        return Loaded(engine, tokenizer, engine.facts.model_size, None)


def rate(test: Test, sample: Sample) -> float:
    return test.tokens / sample.ns * 1e9


def quality_of(model: Decoder, tokenizer: Tokenizer, text: str, options: Options) -> Perplexity | None:
    if not text:
        return None
    ctx = min(options.ctx, model.config.max_position_embeddings)
    return perplexity(model, tokenizer, tokenizer.encode(text), ctx, kv=options.kv)


def same_tokens(base: Tokenizer, other: Tokenizer, text: str) -> bool:
    return base.vocab_size == other.vocab_size and base.encode(text) == other.encode(text)


def greedy_agreement(models: Sequence[Decoder], tokenizers: Sequence[Tokenizer]) -> tuple[int, int]:
    """Of the tokens (or, where these differ, characters) that both write after a few prompts: how many are the same up
    to the first difference, and how many there are."""
    alike = count = 0
    for prompt in PROMPTS:
        ids = [tokenizer.encode(prompt) for tokenizer in tokenizers]
        base, other = (written(model, each) for model, each in zip(models, ids, strict=True))
        if ids[0] != ids[1]:
            texts = [list(map(ord, t.decode(tokens))) for t, tokens in zip(tokenizers, (base, other), strict=True)]
            size = min(map(len, texts))
            base, other = texts[0][:size], texts[1][:size]
        alike += alike_at_first(base, other)
        count += len(base)
    return alike, count


def written(model: Decoder, ids: list[int]) -> list[int]:
    """WRITTEN tokens after `ids`, through whatever ends a text."""
    c = model.config
    ids = ids or [0]
    count = min(WRITTEN, c.max_position_embeddings - len(ids))
    blocks = -(-(len(ids) + count) // BLOCK_SIZE)
    cache = model.ops.new_cache(c.num_hidden_layers, blocks, c.num_key_value_heads, c.head_dim, "f16")
    run = model.ops.compile(model, cache)
    return greedy(run, np.asarray(run(Step.whole(ids, [len(ids) - 1])))[0], len(ids), count)
