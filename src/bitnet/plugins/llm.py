"""Models of llm (https://llm.datasette.io): `llm -m bitnet "Tell me a story."` is answered in llm's own process.

"bitnet" is the built-in model, or with `-o path FILE` another one; those in the cache are "bitnet/NAME".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

import llm
from pydantic import Field, create_model

if TYPE_CHECKING:
    from bitnet.api import BitNet

NOT_HERE = ("logprobs", "logit_bias", "stop")  # fields of SamplingParams that no option could hold


@llm.hookimpl
def register_models(register: Callable[[Any], None]) -> None:
    from bitnet.hub import cache

    register(BitNetModel("bitnet", ""))
    for held in cache.held():
        register(BitNetModel(f"bitnet/{held.name}", str(held.path)))


class BitNetModel(llm.Model):
    can_stream = True

    def __init__(self, model_id: str, path: str) -> None:
        self.model_id, self.path = model_id, path

    @property
    def Options(self) -> Any:
        return options(not self.path)

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        chosen = {name: value for name, value in prompt.options.model_dump().items() if value is not None}
        model = opened(chosen.pop("path", self.path), chosen.pop("threads", 0))
        yield from model.chat(turns(prompt, conversation), chosen.pop("max_tokens", None), stream=True, **chosen)
        if model.stats is not None:
            response.set_usage(input=model.stats.prompt_tokens, output=model.stats.generated_tokens)


@cache
def options(any_path: bool) -> Any:
    """An option for each field of SamplingParams, with its help and its bounds."""
    from bitnet.engine import SamplingParams

    types = get_type_hints(SamplingParams)
    fields: dict[str, Any] = {"threads": (int | None, Field(None, description="processors to use; 0: all", ge=0))}
    if any_path:
        fields["path"] = (str | None, Field(None, description="a GGUF file, a folder or a name: org/name:QUANT"))
    for name, field in SamplingParams.__dataclass_fields__.items():
        if name not in NOT_HERE:
            low, high = (
                each if math.isfinite(each) else None for each in (field.metadata["low"], field.metadata["high"])
            )
            fields[name] = (types[name] | None, Field(None, description=field.metadata["help"], ge=low, le=high))
    return create_model("Options", __base__=llm.Options, **fields)


@cache
def opened(path: str, threads: int) -> BitNet:
    from bitnet.api import BitNet

    return BitNet(path or None, threads=threads)


def turns(prompt: Any, conversation: Any) -> list[dict[str, str]]:
    """What was said so far, and now: in `prompt.messages`, where llm has them (0.36 does)."""
    if hasattr(prompt, "messages"):
        return [{"role": each.role, "content": text_of(each.parts)} for each in prompt.messages]
    said: list[dict[str, str]] = []
    for earlier in conversation.responses if conversation else ():
        said += [*asked(earlier.prompt), {"role": "assistant", "content": earlier.text_or_raise()}]
    return said + asked(prompt)


def text_of(parts: list[Any]) -> str:
    from llm.parts import TextPart

    return "".join(part.text for part in parts if isinstance(part, TextPart))


def asked(prompt: Any) -> list[dict[str, str]]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": prompt.prompt}]
