"""The door most people come through: a model that generates, streams, chats and scores."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

import bitnet.formats
from bitnet import backends, hub, models, tune
from bitnet.engine import (
    LLM,
    Drafter,
    DraftModel,
    Embedder,
    EngineConfig,
    PromptLookup,
    SamplingParams,
    Sequence,
    TokenLogprob,
    check_vocabularies,
)
from bitnet.engine.cache_size import fitted
from bitnet.errors import BitNetError, ParameterError, UnsupportedError
from bitnet.models import Decoder
from bitnet.models.load import Progress
from bitnet.models.pooling import read_pooling
from bitnet.tokenizer import ChatTemplate, Tokenizer, chat_template_for

if TYPE_CHECKING:
    from bitnet.engine.service import Service

BUILTIN = "stories.gguf"
Messages = Items[Mapping[str, Any]]


def builtin_model() -> Path:
    """The file of the model that ships with the package."""
    return Path(str(files("bitnet") / "builtin" / BUILTIN))


@dataclass(frozen=True, slots=True)
class Stats:
    """Of one generation: counts of tokens, seconds from request to first token and from there to the last.

    steps: runs of the model that gave tokens. drafted: guesses at tokens, of which `accepted` were right. slid: tokens
    that were dropped from a full context. cached: tokens of the prompt that were known from before.
    """

    prompt_tokens: int
    generated_tokens: int
    prompt_seconds: float
    generated_seconds: float
    finish_reason: str
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    slid: int = 0
    cached: int = 0

    @classmethod
    def of(cls, sequence: Sequence) -> Stats:
        first = sequence.first_token or sequence.finished
        return cls(
            len(sequence.prompt),
            len(sequence.output),
            first - sequence.arrived,
            sequence.finished - first,
            sequence.finish_reason,
            sequence.steps,
            sequence.drafted,
            sequence.accepted,
            sequence.slid,
            sequence.cached,
        )


class BitNet:
    """A ternary language model, opened from a GGUF file or a Hugging Face folder.

    model: a path, a name on the hub ("org/name", "org/name:QUANT"; fetched where it is not in the cache), or nothing
    for the model that ships with the package. threads: 0 uses every processor this process
    may use. backend, or device: "cpu", "cuda" for an NVIDIA GPU ("cuda:1" for the second), or
    "reference" for the slow definition in NumPy. weights: how ternary weights are kept,
    "2bit", "1.6bit", or what is faster here ("auto"). kernel: "i2_s" multiplies them; "tl1" and "tl2" look partial sums
    up. The results are the same bits. profile: whether to use what `bitnet tune` found for this model on this machine,
    where nothing else is asked for. draft: guess at tokens and verify several at once, which gives the same text in
    less time where the guesses are good: "lookup" guesses that the text repeats itself, a smaller model of
    the same vocabulary has that one guess. The remaining arguments are those of EngineConfig: ctx_size, max_sequences,
    chunk, kv, head, draft_tokens, ctx_overflow, ctx_keep, kv_blocks, prefix_cache.

    Raises ModelError when the file cannot be opened, ParameterError when an argument is out of range, ResourceError
    when the weights, or the cache of one context, would not fit into memory (`force=True` tries all the same).
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        threads: int = 0,
        backend: str = "cpu",
        device: str | None = None,
        weights: str = "auto",
        kernel: str = "auto",
        progress: Progress = lambda done, total: None,
        force: bool = False,
        draft: str | Path | None = None,
        profile: bool = True,
        **engine: Any,
    ) -> None:
        backend = device or backend
        known = "threads, backend, device, weights, kernel, progress, force, draft, profile, "
        config = keyword_config(EngineConfig, engine, known)
        ops = backends.make(backend, weights, kernel)
        for name, path in (("model", model), ("draft", draft)):
            if not isinstance(path, (str, os.PathLike, type(None))) or path == "":
                raise ParameterError(f"{name} is {path!r}; expected a path or a name.")
        self.path = hub.locate(model) if model is not None else builtin_model()
        with bitnet.formats.open(self.path) as checkpoint:
            self.profile = tune.find(checkpoint) if profile and backend == "cpu" else tune.Found()
            given = {"threads": threads, "weights": weights, "kernel": kernel, **engine}
            options = self.profile.options.under(given)
            self.tuned = options != tune.Options().under(given)
            config = replace(config, head=options.head, chunk=options.chunk)
            if backend in ("cpu", "tvm"):
                backends.set_threads(options.threads)
            if backend == "cpu":
                ops = backends.make(backend, options.weights, options.kernel)
            self.tokenizer = Tokenizer.from_checkpoint(checkpoint)
            decoder = models.load(checkpoint, ops, progress, force, config.head)
            self.chat_template: ChatTemplate = chat_template_for(checkpoint, self.tokenizer)
            self.pooling = read_pooling(checkpoint)
        if self.tokenizer.vocab_size > decoder.config.vocab_size:
            raise UnsupportedError(
                f"{self.path}: the tokenizer has {self.tokenizer.vocab_size} tokens, "
                f"the embedding {decoder.config.vocab_size} rows."
            )
        if not force:
            config = fitted(config, decoder.config, ops.free_bytes())
        drafter = None if draft is None else open_drafter(draft, decoder, self.tokenizer, config, progress, force)
        self._llm: LLM | None = LLM(decoder, self.tokenizer, config, drafter)
        self._embedder: Embedder | None = None
        self._service: Service | None = None
        self.stats: Stats | None = None  # of the last generation

    @property
    def llm(self) -> LLM:
        """The engine: for requests that are queued by hand."""
        if self._llm is None:
            raise BitNetError(f"{self.path} is closed.", "Open it again: BitNet(path)")
        return self._llm

    def __repr__(self) -> str:
        return f"<BitNet {self.path.name}{' (closed)' if self._llm is None else ''}>"

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> BitNet:
        """Open a model by its name on the hub, such as "microsoft/bitnet-b1.58-2B-4T-gguf:I2_S", or by path."""
        return cls(name, **options)

    @overload
    def generate(self, prompt: str, max_tokens: int | None = 50, **sampling: Any) -> str: ...
    @overload
    def generate(self, prompt: list[str], max_tokens: int | None = 50, **sampling: Any) -> list[str]: ...
    def generate(self, prompt: str | list[str], max_tokens: int | None = 50, **sampling: Any) -> str | list[str]:
        """What the model writes after `prompt`; a list of prompts is worked on together.

        sampling: any field of SamplingParams (temperature, top_k, top_p, min_p, seed, stop ...).
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
            raise ParameterError(f"prompt is {prompt!r:.60}; expected a text or a list of texts.")
        params = sampling_params(max_tokens, sampling)
        sequences = [self.llm.add_request(self.tokenize(p), params) for p in prompts]
        texts = dict.fromkeys(sequences, "")
        for output in self.llm.run(sequences):
            texts[output.sequence] += output.text
        if sequences:
            self.stats = Stats.of(sequences[-1])
        return list(texts.values()) if isinstance(prompt, list) else texts[sequences[0]]

    def stream(self, prompt: str, max_tokens: int | None = 50, **sampling: Any) -> Iterator[str]:
        """As `generate`, in pieces as they come; leaving the loop early stops the work."""
        return self.stream_ids(self.tokenize(prompt), sampling_params(max_tokens, sampling))

    @overload
    def chat(
        self,
        messages: str | Messages,
        max_tokens: int | None = None,
        *,
        stream: Literal[False] = False,
        **sampling: Any,
    ) -> str: ...
    @overload
    def chat(
        self, messages: str | Messages, max_tokens: int | None = None, *, stream: Literal[True], **sampling: Any
    ) -> Iterator[str]: ...
    def chat(
        self, messages: str | Messages, max_tokens: int | None = None, *, stream: bool = False, **sampling: Any
    ) -> str | Iterator[str]:
        """The model's answer to a conversation.

        messages: what the user says, or a list of {"role": "system" | "user" | "assistant", "content": text}.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids = self.chat_template.apply(messages, self.tokenizer)
        params = sampling_params(max_tokens, sampling)
        pieces = self.stream_ids(ids, replace(params, stop=params.stop + self.chat_template.stop))
        return pieces if stream else "".join(pieces)

    async def astream(self, prompt: str, max_tokens: int | None = 50, **sampling: Any) -> AsyncIterator[str]:
        """As `stream`, in an event loop: many of them share the model's steps, and none holds the loop up."""
        ids, params = self.tokenize(prompt), sampling_params(max_tokens, sampling)
        ticket = self.service.submit(self.llm.prepare(ids, params))
        async for output in ticket:
            if output.text:
                yield output.text
        self.stats = Stats.of(ticket.sequence)

    @property
    def service(self) -> Service:
        """The engine in a thread of its own, for event loops; made when it is first asked for."""
        if self._service is None:
            from bitnet.engine.service import Service  # asyncio takes a while to import

            self._service = Service(self.llm)
        return self._service

    def stream_ids(self, ids: Items[int], params: SamplingParams) -> Iterator[str]:
        """Text pieces after a prompt of token ids."""
        sequence = self.llm.add_request(ids, params)
        return self._pieces(sequence)

    def _pieces(self, sequence: Sequence) -> Iterator[str]:
        for output in self.llm.run([sequence]):
            if output.text:
                yield output.text
        self.stats = Stats.of(sequence)

    @overload
    def embed(self, text: str, *, pooling: str | None = None, normalize: bool = True) -> NDArray[np.float32]: ...
    @overload
    def embed(self, text: list[str], *, pooling: str | None = None, normalize: bool = True) -> NDArray[np.float32]: ...
    def embed(
        self, text: str | list[str], *, pooling: str | None = None, normalize: bool = True
    ) -> NDArray[np.float32]:
        """The vector (hidden,) of a text, or (texts, hidden) of a list of them.

        pooling: "last", "mean" or "cls"; None takes what the model's files say, else "last". normalize: to length 1.
        Raises ContextError where a text is longer than the context.
        """
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
            raise ParameterError(f"text is {text!r:.60}; expected a text or a list of texts.")
        vectors = self.embedder.embed([self.tokenize(each) for each in texts], pooling or self.pooling, normalize)
        return vectors[0] if isinstance(text, str) else vectors

    @property
    def embedder(self) -> Embedder:
        """Made when it is first asked for: it has a cache of its own."""
        if self._embedder is None:
            llm = self.llm
            c = llm.config
            self._embedder = Embedder(llm.model, llm.ctx_size, c.max_sequences, c.chunk, c.kv)
        return self._embedder

    def tokenize(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of `text`, with the begin-of-text token where the model wants one."""
        if not isinstance(text, str):
            raise ParameterError(f"text is {text!r:.60}; expected a string.")
        return self.tokenizer.encode(text, add_special=add_special)

    def detokenize(self, ids: Items[int]) -> str:
        return self.tokenizer.decode(list(ids))

    def score(self, text: str, top: int = 0) -> list[TokenLogprob]:
        """The natural log-probability of every token of `text` after its first, given those before it."""
        params = SamplingParams(max_tokens=0, logprobs=top or None)
        sequence = self.llm.add_request(self.tokenize(text), params, score_from=0)
        for _ in self.llm.run([sequence]):
            pass
        return sequence.prompt_logprobs

    def close(self) -> None:
        """Give the model's memory back; the object cannot be used afterwards. What its service does is aborted."""
        if self._service is not None:
            self._service.close()
        self._service = None
        self._llm = self._embedder = None

    def __enter__(self) -> BitNet:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_drafter(
    draft: str | Path, model: Decoder, tokenizer: Tokenizer, config: EngineConfig, progress: Progress, force: bool
) -> Drafter:
    """What guesses at the tokens of `model`: PromptLookup, or the model in the file `draft`."""
    if draft == "lookup":
        return PromptLookup()
    with bitnet.formats.open(hub.locate(draft)) as checkpoint:
        check_vocabularies(str(draft), Tokenizer.from_checkpoint(checkpoint), tokenizer)
        smaller = models.load(checkpoint, model.ops, progress, force, config.head)
    return DraftModel(smaller, config, model.config.vocab_size)


def sampling_params(max_tokens: int | None, sampling: Mapping[str, Any]) -> SamplingParams:
    stop, bias = sampling.get("stop"), sampling.get("logit_bias")
    if isinstance(stop, (str, list)):
        sampling = {**sampling, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    if isinstance(bias, Mapping):
        sampling = {**sampling, "logit_bias": tuple(bias.items())}
    return replace(keyword_config(SamplingParams, sampling), max_tokens=max_tokens)


Options = TypeVar("Options", EngineConfig, SamplingParams)


def keyword_config(kind: type[Options], given: Mapping[str, Any], others: str = "") -> Options:
    """`kind(**given)`, with an error that names the fields, and `others`, when one is unknown."""
    unknown = given.keys() - kind.__dataclass_fields__.keys()
    if unknown:
        known = others + ", ".join(kind.__dataclass_fields__)
        raise ParameterError(f"There is no option {', '.join(sorted(unknown))}.", f"Known: {known}.")
    return kind(**given)
