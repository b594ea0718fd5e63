"""Renders Jinja templates of strangers, as a process of its own that can be bounded in memory and killed.

The sandbox stops a template from reaching Python; it does not stop `'a' * 10**9` or endless loops. This file is run
as a script and imports nothing of bitnet. One JSON object per line: {"source", "variables"} -> {"text"} or {"error"}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 16 << 20  # characters
MAX_MEMORY = 768 << 20  # bytes of address space
MAX_REPEAT = 1 << 20  # of a text or list times a number, and of a power's exponent


class Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it only holds its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """What transformers offers to chat templates, and arithmetic that cannot fill the memory in one step."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation])
        self.filters["tojson"] = to_json
        self.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, (str, bytes)):
            raise SecurityError("a template may not format text with %")
        if operator == "*" and not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            limit(len(left) * right if hasattr(left, "__len__") else len(right) * left)
        if operator == "**":
            limit(abs(right) * (left.bit_length() if isinstance(left, int) else 1))
        return super().call_binop(context, operator, left, right)


class RaisedByTemplate(TemplateError):
    """A conversation that the template refuses."""


def limit(size: float) -> None:
    if size > MAX_REPEAT:
        raise SecurityError(f"a template may not make a value of size {size:.0f}")


def raise_exception(message: str) -> None:
    raise RaisedByTemplate(str(message))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


@lru_cache(maxsize=8)
def compiled(source: str) -> Template:
    return Sandbox().from_string(source)


def render(source: str, variables: dict[str, Any]) -> str:
    size, pieces = 0, []
    for piece in compiled(source).generate(variables):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_OUTPUT:
            raise SecurityError(f"the rendered text has more than {MAX_OUTPUT} characters")
    return "".join(pieces)


def answer(request: dict[str, Any], render: Callable[[str, dict[str, Any]], str] = render) -> dict[str, Any]:
    """{"text"}; or {"error": the kind, "message"}: "raised" where the template refuses the conversation."""
    try:
        return {"text": render(request["source"], request["variables"])}
    except RaisedByTemplate as error:
        return {"error": "raised", "message": str(error)}
    except TemplateSyntaxError as error:
        return {"error": "syntax", "message": f"line {error.lineno}: {error.message}"}
    except (SecurityError, UndefinedError) as error:
        return {"error": "failed", "message": str(error)}
    except RecursionError:
        return {"error": "failed", "message": "it calls itself too deeply"}
    except MemoryError:
        return {"error": "failed", "message": "it needs too much memory"}
    except Exception as error:
        return {"error": "failed", "message": f"{type(error).__name__}: {error}"[:1000]}


def bound_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):  # Windows; or a lower limit is already set
        pass


def main() -> None:
    bound_memory()
    for line in sys.stdin.buffer:
        reply = json.dumps(answer(json.loads(line)))
        sys.stdout.write(reply + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
