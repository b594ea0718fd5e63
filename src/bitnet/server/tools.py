"""Tools that a model may call: what a request says of them, and the grammar of a call that it must make."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bitnet.server.errors import ApiError
from bitnet.server.grammar import ANY_OBJECT, Grammar, either, json_rule, lark, quoted
from bitnet.server.tool_calls import BEGIN, END, CallParser, Syntax

MOST_TOOLS = 128
MOST_CALLS = 16  # that a grammar allows in one answer
NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Tool:
    """parameters: a JSON schema. strict: calls keep to it, even where the model is free to make none."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ApiError(400, f"{self.name!r:.80} is no name of a tool: letters, digits, _ and - are.", param="tools")

    def for_template(self) -> dict[str, Any]:
        function = {"name": self.name, "description": self.description or "", "parameters": self.schema()}
        return {"type": "function", "function": function}

    def schema(self) -> dict[str, Any]:
        return {**ANY_OBJECT, **(self.parameters or {"properties": {}})}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """must: the model has to call one of the tools. one: exactly one call. parallel: several calls may be made."""

    tools: tuple[Tool, ...]
    must: bool = False
    one: bool = False
    parallel: bool = True

    def parser(self, syntax: Syntax) -> CallParser:
        return CallParser(syntax, [tool.name for tool in self.tools], self.parallel)

    def grammar(self, syntax: Syntax, answer: Grammar | None) -> Grammar | None:
        """What holds the model to calls where it must make one, and to `answer` where it makes none."""
        if self.must:
            return lark(f"start: calls\n{self._rules(syntax)}")
        if answer is not None:
            return either(f"calls\n{self._rules(syntax)}", answer)
        if syntax == "tags" and any(tool.strict for tool in self.tools):
            return self._strictly()
        return None

    def _rules(self, syntax: Syntax) -> str:
        several = syntax == "tags" and self.parallel and not self.one
        calls = f'calls: call ("\\n" call){{0,{MOST_CALLS - 1}}}' if several else "calls: call"
        begin, end = (BEGIN + "\n", "\n" + END) if syntax == "tags" else ("", "")
        return f"{calls}\n{self._calls(begin, end, 'arguments' if syntax == 'tags' else 'parameters')}"

    def _strictly(self) -> Grammar:
        """Any text, in which calls are such that their tool takes them."""
        start = "start: (head call)* text" if self.parallel else "start: head call | text"
        text = f"text: TEXT\nTEXT: /(.|\\n)*/\nhead[lazy]: TEXT {quoted(BEGIN)}"
        loose = [tool.name for tool in self.tools if not tool.strict]
        return lark(f"{start}\n{text}\n{self._calls(chr(10), chr(10) + END, 'arguments', loose)}")

    def _calls(self, begin: str, end: str, key: str, loose: Sequence[str] = ()) -> str:
        """The rule `call`, and those that it is made of. loose: tools whose arguments may be any object."""
        names = " | ".join(f"call_{i}" for i in range(len(self.tools)))
        lines = [f"call: {names}"]
        for i, tool in enumerate(self.tools):
            head = f'{begin}{{"name": {json.dumps(tool.name)}, "{key}": '
            schema = ANY_OBJECT if tool.name in loose else tool.schema()
            lines.append(f"call_{i}: {quoted(head)} arguments_{i} {quoted('}' + end)}")
            lines.append(f"arguments_{i}: {json_rule(schema, f'the schema of the tool {tool.name}')}")
        return "\n".join(lines)


def tool_use(
    tools: Sequence[Tool], choice: str, name: str | None = None, parallel: bool = True, param: str = "tool_choice"
) -> ToolUse | None:
    """choice: "none", "auto", "required", or "named" and then `name`. None: there is nothing to call."""
    if len(tools) > MOST_TOOLS:
        raise ApiError(400, f"There are {len(tools)} tools; at most {MOST_TOOLS} are taken.", param="tools")
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "Two tools have the same name.", param="tools")
    if choice in ("required", "named") and not tools:
        raise ApiError(400, "tool_choice needs tools.", param=param)
    if choice == "named":
        tools = [tool for tool in tools if tool.name == name]
        if not tools:
            raise ApiError(400, f"tool_choice names {name!r:.80}, and there is no such tool.", param=param)
    if choice == "none" or not tools:
        return None
    return ToolUse(tuple(tools), choice != "auto", choice == "named", parallel)


def syntax_of(template: str) -> Syntax:
    """How the template has taught the model to write calls; one that knows no tools gets instructions of ours."""
    return "bare" if re.search(r"\btools\b", template) and BEGIN not in template else "tags"


# As OpenAI's chat route has them.


class Function(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> Tool:
        return Tool(self.name, self.description, self.parameters, bool(self.strict))


class ToolEntry(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["function"]
    function: Function


class Named(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    name: str


class NamedChoice(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["function"]
    function: Named


class AllowedTools(BaseModel):
    mode: Literal["auto", "required"]
    tools: list[NamedChoice]


class AllowedChoice(BaseModel):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


Tools = Annotated[list[ToolEntry], Field(max_length=MOST_TOOLS, fail_fast=True)]
ToolChoice = Literal["none", "auto", "required"] | NamedChoice | AllowedChoice


def openai_tools(entries: Sequence[ToolEntry], choice: ToolChoice | None, parallel: bool | None) -> ToolUse | None:
    tools = [entry.function.tool() for entry in entries]
    several = parallel is not False
    if isinstance(choice, NamedChoice):
        return tool_use(tools, "named", choice.function.name, several)
    if isinstance(choice, AllowedChoice):
        allowed = {each.function.name for each in choice.allowed_tools.tools}
        return tool_use([t for t in tools if t.name in allowed], choice.allowed_tools.mode, parallel=several)
    return tool_use(tools, choice or "auto", parallel=several)
