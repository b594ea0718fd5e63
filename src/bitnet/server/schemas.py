"""Pieces that the requests of several dialects share: sampling options by the fields of SamplingParams, and errors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from bitnet.engine import SamplingParams
from bitnet.server.errors import ApiError
from bitnet.server.registry import Served

MOST_CHOICES = 16
MOST_STOPS = 4
MOST_BIASES = 1024
MOST_PROMPTS = 2048  # texts in one request
FIELDS = SamplingParams.__dataclass_fields__


class Request(BaseModel):
    """Strict about types and ranges. A field that is neither known nor in `IGNORED` is refused by name."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def known_fields(cls, given: Any) -> Any:
        if isinstance(given, dict):
            known = {name for field, info in cls.model_fields.items() for name in (field, info.alias) if name}
            for name in given:
                if name not in known:
                    close = difflib.get_close_matches(str(name)[:64], known, 1)
                    hint = f" Did you mean {close[0]!r}?" if close else ""
                    raise ValueError(f"There is no field {str(name)[:64]!r}.{hint}")
        return given


def bounded(name: str, **more: Any) -> Any:
    """The bounds and the help of the field `name` of SamplingParams."""
    knob = FIELDS[name].metadata
    return Field(default=None, ge=knob["low"], le=knob["high"], description=knob["help"], **more)


class Sampling(Request):
    """Options that all of OpenAI's routes for text share; None takes the default of SamplingParams."""

    model: str | None = Field(None, description="a name from /v1/models; absent: the default model")
    temperature: float | None = bounded("temperature")
    top_p: float | None = bounded("top_p")
    top_k: int | None = Field(None, ge=-1, description="keep the k likeliest tokens; 0 and -1 keep all")
    min_p: float | None = bounded("min_p")
    presence_penalty: float | None = bounded("presence_penalty")
    frequency_penalty: float | None = bounded("frequency_penalty")
    repetition_penalty: float | None = bounded("repetition_penalty")
    repeat_penalty: float | None = bounded("repetition_penalty")  # llama.cpp's name
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description=FIELDS["seed"].metadata["help"])
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS, fail_fast=True)] | None = Field(
        None, description="stop before any of these strings"
    )
    logit_bias: dict[str, float] | None = Field(
        None, max_length=MOST_BIASES, description="add to the logits of these token ids"
    )
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="how many answers")
    ignore_eos: bool | None = Field(None, description=FIELDS["ignore_eos"].metadata["help"])
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Accepted and ignored: they say nothing about the text.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    cache_prompt: Any = None  # prefixes are always shared; they change no result
    timings_per_token: Any = None

    def params(self, served: Served, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """Raises ParameterError or ApiError where pydantic cannot know."""
        given: dict[str, Any] = {
            name: value
            for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "ignore_eos")
            if (value := getattr(self, name)) is not None
        }
        penalty = self.repetition_penalty if self.repetition_penalty is not None else self.repeat_penalty
        if penalty is not None:
            given["repetition_penalty"] = penalty
        if self.top_k is not None:
            given["top_k"] = max(0, self.top_k)
        if self.seed is not None:
            given["seed"] = self.seed % 2**64
        if self.logit_bias:
            given["logit_bias"] = biases(self.logit_bias, served.model.llm.model.config.vocab_size)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, stop=stop, **given)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Texts = Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]
# A text or several; token ids or several lists of them.
Prompts = str | Texts | Ids | Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS, fail_fast=True)]


class StreamOptions(Request):
    include_usage: bool | None = None
    include_obfuscation: Any = None  # ignored
    continuous_usage_stats: bool | None = None


Sampling.model_rebuild()


def biases(given: Mapping[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    found = []
    for name, bias in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < vocab_size):
            raise ApiError(400, f"logit_bias: {name!r:.40} is not a token id below {vocab_size}.", param="logit_bias")
        if not -100 <= bias <= 100:
            raise ApiError(400, f"logit_bias[{name}] is {bias}; expected -100 to 100.", param="logit_bias")
        found.append((int(name), float(bias)))
    return tuple(sorted(found))


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorFields


Responses = dict[int | str, dict[str, Any]]


def errors_of(shape: type[BaseModel]) -> Responses:
    return {
        "4XX": {"model": shape, "description": "The request is at fault."},
        "5XX": {"model": shape, "description": "The server is at fault, or cannot serve this now."},
    }


ERRORS = errors_of(ErrorBody)


class CachedTokens(BaseModel):
    cached_tokens: int


class UsageBody(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


FIELDS_OF_EVENT = {"event": {"type": "string"}, "data": {"type": "string"}}
EVENTS = {"text/event-stream": {"schema": {"type": "object", "properties": FIELDS_OF_EVENT}}}
LINES = {"application/x-ndjson": {"schema": {"type": "string"}}}


def streamed(answer: type[BaseModel], errors: Responses = ERRORS, stream: Mapping[str, Any] = EVENTS) -> Responses:
    """The responses of a route whose answer may come as a stream."""
    return {200: {"model": answer, "content": dict(stream)}, **errors}
