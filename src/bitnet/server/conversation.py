"""From a conversation, in whichever dialect it came, to a run of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bitnet.engine import SamplingParams
from bitnet.engine.constraint import Constraint
from bitnet.server.context import Context
from bitnet.server.generation import Generation, Run, generate
from bitnet.server.registry import Served

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: as a chat template takes them. variables: further ones of the template's, such as tools."""

    served: Served
    messages: Messages
    params: SamplingParams
    n: int = 1
    variables: Mapping[str, Any] = field(default_factory=dict)
    constraint: Callable[[], Constraint] | None = None


async def converse(conversation: Conversation, context: Context) -> Run:
    """As `generate`, after the template has been applied."""
    served, params = conversation.served, conversation.params
    with served.in_use():
        ids = await asyncio.to_thread(template_ids, served, conversation.messages, conversation.variables)
    params = replace(params, stop=params.stop + served.model.chat_template.stop)
    return await generate(Generation(served, [ids], params, conversation.n, conversation.constraint), context)


def template_ids(served: Served, messages: Messages, variables: Mapping[str, Any]) -> list[int]:
    model = served.model
    return model.chat_template.apply(messages, model.tokenizer, **variables)


def template_text(served: Served, messages: Messages, variables: Mapping[str, Any]) -> str:
    model = served.model
    return model.chat_template.render(messages, model.tokenizer, **variables)
