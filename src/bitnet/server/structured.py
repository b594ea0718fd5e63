"""The fields of a request that say what its answer must look like, by the names of OpenAI, llama.cpp and vLLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from bitnet.server import grammar
from bitnet.server.errors import ApiError
from bitnet.server.grammar import Grammar
from bitnet.server.schemas import Request, Sampling

Choices = Annotated[list[str], Field(min_length=1, max_length=1024, fail_fast=True)]


class NamedSchema(Request):
    """strict: ignored, for every schema is kept to."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Request):
    """schema: llama.cpp's way to say what kind of json_object."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    def grammar(self, param: str = "response_format") -> Grammar | None:
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema else self.schema_
        if self.type == "json_object":
            schema = schema or grammar.ANY_OBJECT
        if schema is None:
            raise ApiError(400, f"{param} is a json_schema without a schema.", param=param)
        return grammar.of_schema(schema, param)


class StructuredOutputs(Request):
    """vLLM's newer way."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Choices | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Structured(Sampling):
    response_format: ResponseFormat | None = None
    grammar: str | None = Field(None, description="GBNF or Lark, as llama.cpp and llguidance have them")
    json_schema: dict[str, Any] | None = None
    regex: str | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Choices | None = None
    guided_grammar: str | None = None

    def wanted_grammar(self) -> Grammar | None:
        """What the answer is held to. Raises ApiError where that is more than one thing, or cannot be done."""
        newer = self.structured_outputs or StructuredOutputs.model_validate({})
        wanted: list[tuple[str, Any, Callable[[Any, str], Grammar | None]]] = [
            ("response_format", self.response_format, ResponseFormat.grammar),
            ("json_schema", self.json_schema, grammar.of_schema),
            ("guided_json", self.guided_json, of_json),
            ("structured_outputs.json", newer.json_, of_json),
            ("structured_outputs.json_object", newer.json_object or None, of_object),
            *((name, getattr(self, name), grammar.of_regex) for name in ("regex", "guided_regex")),
            ("structured_outputs.regex", newer.regex, grammar.of_regex),
            ("guided_choice", self.guided_choice, grammar.of_choices),
            ("structured_outputs.choice", newer.choice, grammar.of_choices),
            *((name, getattr(self, name), grammar.of_grammar) for name in ("grammar", "guided_grammar")),
            ("structured_outputs.grammar", newer.grammar, grammar.of_grammar),
        ]
        found = {name: made for name, value, make in wanted if value is not None and (made := make(value, name))}
        if len(found) > 1:
            names = ", ".join(found)
            raise ApiError(400, f"{names} each say what the answer must look like; only one can be kept to.")
        return next(iter(found.values()), None)


def of_json(schema: dict[str, Any] | str, param: str) -> Grammar:
    """vLLM also takes a schema as text."""
    if isinstance(schema, str):
        schema = grammar.parsed(schema, param)
    return grammar.of_schema(schema, param)


def of_object(wanted: bool, param: str) -> Grammar:
    return grammar.of_schema(grammar.ANY_OBJECT, param)
