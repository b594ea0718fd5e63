"""Grammars that an answer is held to, token by token: made of schemas and expressions, and compiled by llguidance.

Whatever cannot be kept to is refused: an answer that only looks as asked for would be worse than none.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import any_to_lark

from bitnet.engine.constraint import Constraint, Mask
from bitnet.errors import ParameterError
from bitnet.server.errors import ApiError
from bitnet.tokenizer import Tokenizer

MAX_BYTES = 64 << 10  # of a schema, an expression or a grammar
MAX_PROPERTIES = 256
MAX_DEPTH = 32  # levels of a schema's JSON
MAX_SECONDS = 5.0  # for compiling, the wait for others included
MOST_WAITING = 64  # grammars to be compiled
# JSON may be set in lines, but not with spaces without end, which is how small models run away.
LAYOUT = {"whitespace_pattern": r"(?: |\n{1,2}[ \t]{0,20})", "lenient": False}
LIMITS = LLParserLimits(verbose_errors=False)
ANY_OBJECT = {"type": "object"}
NO_THOUGHT = r"/[ \n]{0,4}/"  # between the thoughts and the answer

Grammar = str  # as llguidance reads it: JSON that holds one in Lark, and those that it refers to


def of_schema(schema: Mapping[str, Any], param: str = "schema") -> Grammar:
    """JSON that is valid under the schema."""
    return lark(f"start: {json_rule(schema, param)}")


def json_rule(schema: Mapping[str, Any], param: str) -> str:
    """The same, as a part of a rule. Its references are to itself, wherever it stands."""
    check_schema(schema, param)
    return "%json " + json.dumps({**schema, "x-guidance": LAYOUT})


def of_regex(expression: str, param: str = "regex") -> Grammar:
    """Text that the expression (of Rust's regex crate) matches from end to end."""
    return LLMatcher.grammar_from_regex(sized(expression, param))


def of_choices(choices: Iterable[str], param: str = "choice") -> Grammar:
    return lark(sized("start: " + " | ".join(map(quoted, choices)), param))


def of_grammar(source: str, param: str = "grammar") -> Grammar:
    """Lark, or the GBNF of llama.cpp."""
    try:
        return lark(any_to_lark(sized(source, param)))
    except ApiError:
        raise
    except Exception as error:  # any_to_lark raises no class of its own
        raise refusal(param, f"{error}") from None


def lark(source: str) -> Grammar:
    return json.dumps({"grammars": [{"lark_grammar": source}]})


def quoted(text: str) -> str:
    """A literal of Lark's."""
    return json.dumps(text, ensure_ascii=False)


def after_thoughts(grammar: Grammar, end: int | None = None) -> Grammar:
    """The grammar, after the thoughts that the prompt has begun. end: the control token that ends them, if any."""
    thoughts = 'thoughts[lazy]: /(.|\\n)*/ "</think>"' if end is None else f"thoughts: /(.|\\n)*/ <[{end}]>"
    return around(f"thoughts {NO_THOUGHT} @answer\n{thoughts}", grammar)


def either(rule: str, grammar: Grammar) -> Grammar:
    """What the rule says, or the grammar. Further rules may stand below the rule."""
    return around("@answer | " + rule, grammar)


def around(rule: str, grammar: Grammar) -> Grammar:
    """The rule, in which the grammar is called @answer."""
    first, *others = json.loads(grammar)["grammars"]
    name = f"answer{len(others)}"  # of which there is none yet
    outer = {"lark_grammar": "start: " + rule.replace("@answer", f"@{name}")}
    return json.dumps({"grammars": [outer, {**first, "name": name}, *others]})


def sized(source: str, param: str) -> str:
    if len(source.encode("utf-8", "replace")) > MAX_BYTES:
        raise refusal(param, f"it has more than {MAX_BYTES} bytes")
    try:
        source.encode()
    except UnicodeEncodeError:
        raise refusal(param, "it has half of a surrogate pair") from None
    return source


def parsed(schema: str, param: str) -> dict[str, Any]:
    """A schema that came as text."""
    try:
        value = json.loads(sized(schema, param))
    except (ValueError, RecursionError) as error:
        raise refusal(param, f"it is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise refusal(param, "it is JSON, but no object")
    return value


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Its size, and that it refers to nothing outside: no reference is ever fetched."""
    properties = depth = 0
    level: list[Any] = [schema]
    while level:
        depth += 1
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                named = value.get("properties")
                properties += len(named) if isinstance(named, Mapping) else 0
                reference = value.get("$ref")
                if isinstance(reference, str) and not reference.startswith("#"):
                    raise refusal(param, f"$ref {reference!r:.80} is not within it, and is not fetched")
                below += value.values()
            elif isinstance(value, list):
                below += value
        level = [value for value in below if isinstance(value, (Mapping, list))]
    if properties > MAX_PROPERTIES:
        raise refusal(param, f"it has {properties} properties; at most {MAX_PROPERTIES} are taken")
    if depth > MAX_DEPTH:
        raise refusal(param, f"it is nested {depth} levels deep; at most {MAX_DEPTH} are taken")
    sized(json.dumps(schema), param)


def refusal(param: str | None, reason: str) -> ApiError:
    name = param or "The schema or grammar"
    return ApiError(400, f"{name} cannot be kept to: {reason}.", param=param, code="invalid_grammar")


POOL = ThreadPoolExecutor(2, "bitnet-grammar")
waiting = 0


async def compiled(grammar: Grammar, tokenizer: Tokenizer) -> Callable[[], Constraint]:
    """What makes a constraint for each text. Raises ApiError: 400 for what cannot be kept to, 429 where many wait."""
    global waiting
    if waiting >= MOST_WAITING:
        raise busy()
    waiting += 1
    future = POOL.submit(matcher_of, grammar, tokenizer)
    try:
        matcher = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), MAX_SECONDS)
    except asyncio.TimeoutError:
        if future.cancel():
            raise busy() from None
        raise refusal(None, f"compiling it took more than {MAX_SECONDS:g} seconds") from None
    finally:
        future.cancel()
        waiting -= 1
    if matcher.is_error():
        raise refusal(None, first_lines(matcher))
    return lambda: Guided(matcher.deep_copy())


def busy() -> ApiError:
    return ApiError(429, "The server is busy with other grammars.", code="queue_full", retry_after=1)


def matcher_of(grammar: Grammar, tokenizer: Tokenizer) -> LLMatcher:
    with no_panic():
        return LLMatcher(guide_of(tokenizer), grammar, log_level=0, limits=LIMITS)


@contextmanager
def no_panic() -> Iterator[None]:
    """A defect in Rust comes as an exception that is no Exception: it would end the thread that it is met in."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise ParameterError(f"This schema or grammar is too much for llguidance: {error!s:.100}") from error


_guides: WeakKeyDictionary[Tokenizer, LLTokenizer] = WeakKeyDictionary()
_lock = threading.Lock()


def guide_of(tokenizer: Tokenizer) -> LLTokenizer:
    """llguidance's index of the vocabulary, made once for each model."""
    with _lock:
        if tokenizer not in _guides:
            ends = sorted(tokenizer.eos_ids) or [tokenizer.vocab_size - 1]
            _guides[tokenizer] = LLTokenizer(TokenizerWrapper(Alphabet(tokenizer)), tokenizer.vocab_size, ends)
        return _guides[tokenizer]


class Alphabet:
    """A vocabulary as llguidance reads one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        ids = range(tokenizer.vocab_size)
        self.tokens = [tokenizer.token_bytes(i) for i in ids]
        self.special_token_ids = [i for i in ids if tokenizer.is_special(i)]
        self.eos_token_id = min(tokenizer.eos_ids, default=tokenizer.vocab_size - 1)
        self.bos_token_id = tokenizer.bos_id
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._encode(text, add_special=False)


class Guided:
    """A Constraint. Its steps are bounded by llguidance's own fuel: a text that gets too involved ends in an error."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def stopped(self) -> bool:
        return self._matcher.is_stopped()

    def mask(self) -> Mask:
        with no_panic():
            allowed: Mask = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8) != 0
        self._check()
        if not allowed.any():
            raise ParameterError("The grammar allows nothing here.")
        return allowed

    def accept(self, token: int) -> None:
        with no_panic():
            self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ParameterError(f"The grammar cannot be followed any further: {first_lines(self._matcher)}.")


def first_lines(matcher: LLMatcher) -> str:
    """Of what llguidance says, without the picture of the place."""
    return " ".join(re.split(r"\n +\d+ \|", matcher.get_error())[0].removeprefix("at 1(8): ").split())[:300]
