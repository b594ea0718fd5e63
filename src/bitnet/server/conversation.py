"""From a conversation, in whichever dialect it came, to a run of the engine, and from its text to an answer's parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from bitnet.engine import SamplingParams
from bitnet.server import reasoning, tool_calls
from bitnet.server.context import Context
from bitnet.server.generation import Generation, Piece, Run, generate, told_reason
from bitnet.server.grammar import Grammar, after_thoughts, compiled
from bitnet.server.reasoning import Thoughts, begun
from bitnet.server.registry import Served
from bitnet.server.tool_calls import Arguments, Call, CallParser, Syntax
from bitnet.server.tool_prompt import adapted
from bitnet.server.tools import ToolUse, syntax_of
from bitnet.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Thought:
    """More of what the model thinks before it answers."""

    text: str


Part = str | Thought | Call | Arguments  # str: text of the answer


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: as OpenAI has them. variables: further ones of the template's. grammar: makes what holds the answer."""

    served: Served
    messages: Messages
    params: SamplingParams
    n: int = 1
    variables: Mapping[str, Any] = field(default_factory=dict)
    grammar: Callable[[], Grammar | None] = lambda: None
    tools: ToolUse | None = None

    def prompt(self) -> list[int]:
        shown = {} if self.tools is None else {"tools": [tool.for_template() for tool in self.tools.tools]}
        return template_ids(self.served, self.messages, {**self.variables, **shown})

    def parser(self) -> CallParser | None:
        return None if self.tools is None else self.tools.parser(self.syntax)

    @property
    def syntax(self) -> Syntax:
        return syntax_of(self.served.model.chat_template.source)

    def held_to(self, thinking: bool) -> Grammar | None:
        grammar = self.grammar()
        if self.tools is not None:
            grammar = self.tools.grammar(self.syntax, grammar)
        if grammar is None or not thinking:
            return grammar
        return after_thoughts(grammar, self.served.model.tokenizer.id_of(reasoning.END))


async def converse(conversation: Conversation, context: Context) -> Talk:
    """As `generate`, after the template has been applied and the grammar compiled."""
    served, params = conversation.served, conversation.params
    tokenizer, template = served.model.tokenizer, served.model.chat_template
    with served.in_use():
        ids = await asyncio.to_thread(conversation.prompt)
        thinking = begun(ids, tokenizer)
        grammar = await asyncio.to_thread(conversation.held_to, thinking)
        constraint = None if grammar is None else await compiled(grammar, tokenizer)
    params = replace(params, stop=params.stop + template.stop)
    run = await generate(Generation(served, [ids], params, conversation.n, constraint), context)
    return Talk(run, [Reader(thinking, conversation.parser()) for _ in run.sequences], marks_of(tokenizer))


def marks_of(tokenizer: Tokenizer) -> dict[int, str]:
    """Some models have the tags of thoughts and calls as control tokens, others as text."""
    names = (reasoning.BEGIN, reasoning.END, tool_calls.BEGIN, tool_calls.END)
    return {token: name for name in names if (token := tokenizer.id_of(name)) is not None}


class Reader:
    """Takes one text apart as it comes."""

    def __init__(self, thinking: bool, calls: CallParser | None) -> None:
        self._thoughts, self._calls = Thoughts(thinking), calls

    @property
    def called(self) -> bool:
        return self._calls is not None and self._calls.count > 0

    def push(self, text: str) -> list[Part]:
        return self._parts(*self._thoughts.push(text))

    def flush(self) -> list[Part]:
        parts = self._parts(*self._thoughts.flush())
        return parts if self._calls is None else [*parts, *self._calls.flush()]

    def _parts(self, thought: str, text: str) -> list[Part]:
        parts: list[Part] = [Thought(thought)] if thought else []
        if self._calls is not None:
            return parts + self._calls.push(text)
        return [*parts, text] if text else parts


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of an answer, taken apart. reason: where it is the last, "stop", "length" or "tool_calls"."""

    piece: Piece
    parts: list[Part]
    reason: str | None

    @property
    def index(self) -> int:
        return self.piece.index


class Talk:
    """A run whose texts are answers: `async for said in talk`, or `close()` what is not read to its end.

    marks: control tokens, which have no text, that are read like the tags that they are named by.
    """

    def __init__(self, run: Run, readers: list[Reader], marks: Mapping[int, str] = MappingProxyType({})) -> None:
        self.run, self._readers, self._marks = run, readers, marks

    async def __aiter__(self) -> AsyncIterator[Said]:
        async for piece in self.run:
            reader = self._readers[piece.index]
            if piece.finish_reason is None:
                mark = "" if piece.token is None else self._marks.get(piece.token, "")
                yield Said(piece, reader.push(mark + piece.text), None)
                continue
            parts, reason = reader.flush(), told_reason(piece.finish_reason)
            yield Said(piece, parts, "tool_calls" if reason == "stop" and reader.called else reason)

    def close(self) -> None:
        self.run.close()


class Answer:
    """A whole one. calls: each with the text of its arguments."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self.calls: list[tuple[Call, list[str]]] = []
        self.reason = ""

    def add(self, said: Said) -> None:
        for part in said.parts:
            if isinstance(part, str):
                self._text.append(part)
            elif isinstance(part, Thought):
                self._thoughts.append(part.text)
            elif isinstance(part, Call):
                self.calls.append((part, []))
            else:
                self.calls[part.index][1].append(part.text)
        self.reason = said.reason or self.reason

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def thoughts(self) -> str:
        return "".join(self._thoughts)


async def whole(talk: Talk) -> list[Answer]:
    """The answers, one for each choice."""
    answers = [Answer() for _ in talk.run.sequences]
    async for said in talk:
        answers[said.index].add(said)
    return answers


def template_ids(served: Served, messages: Messages, variables: Mapping[str, Any]) -> list[int]:
    model = served.model
    messages, variables = adapted(model.chat_template.source, messages, variables)
    return model.chat_template.apply(messages, model.tokenizer, **variables)


def template_text(served: Served, messages: Messages, variables: Mapping[str, Any]) -> str:
    model = served.model
    messages, variables = adapted(model.chat_template.source, messages, variables)
    return model.chat_template.render(messages, model.tokenizer, **variables)
