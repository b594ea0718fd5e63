"""Servers whose model says a given text whatever it is asked, with a chat template that makes every prompt the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import serving
import tiny

from bitnet.engine import LLM, EngineConfig
from bitnet.tokenizer import Tokenizer
from bitnet.tokenizer.chat import ChatTemplate

# What is in the comments is what the server looks for in a template.
HERMES = "{# tools tool_calls <tool_call> #}{{ bos_token }}"
LLAMA = "{# tools tool_calls #}{{ bos_token }}"
THINKER = "{# tools tool_calls <tool_call> #}{{ bos_token }}<think>\n"


@contextmanager
def speaking(
    text: str | Sequence[int], template: str = HERMES, tokenizer: Tokenizer | None = None, **options: Any
) -> Iterator[serving.Client]:
    """A client of it. tokenizer: of as many tokens as the tiny one, and with its ends. options: fields of Settings."""
    tokenizer = tokenizer or tiny.tokenizer()
    chat = ChatTemplate(template, "plain")
    prompt = chat.apply([{"role": "user", "content": ""}], tokenizer)
    said = tokenizer.encode(text, add_special=False, parse_special=True) if isinstance(text, str) else list(text)

    def opened() -> Any:
        model = serving.Paced([*prompt, *said, *tokenizer.eos_ids])
        stand = serving.Stand(LLM(model, tokenizer, EngineConfig(ctx_size=2048)))  # type: ignore[arg-type]
        stand.chat_template = chat
        return stand

    with serving.serving(opened, **options) as client:
        yield client
