"""Random schemas, and random tokens among those that are allowed: what comes out whole is valid, says jsonschema."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
import tiny

from bitnet.errors import ParameterError
from bitnet.server import grammar

TOKENIZER = tiny.tokenizer()
LEAVES: list[Any] = [
    {"type": "null"}, {"type": "boolean"}, {"type": "number", "minimum": -1.5, "maximum": 2}, {"type": "integer"},
    {"type": "integer", "minimum": -3, "maximum": 12, "multipleOf": 3}, {"type": "string", "maxLength": 4},
    {"type": "string", "pattern": "^[a-c]{1,3}$"}, {"type": "string", "format": "date"}, {"const": {"z": [{}, "q\""]}},
    {"enum": [1, "a", None, True, [1], {"x": 1}, "é\n"]}, {"type": ["string", "null"], "minLength": 1, "maxLength": 2},
]  # fmt: skip


def made(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = dice.choice(["leaf", "array", "object", "object", "any", "reference"]) if depth < 3 else "leaf"
    if kind == "array":
        return {"type": "array", "items": made(dice, depth + 1), "minItems": dice.randint(0, 2), "maxItems": 3}
    if kind == "any":
        return {"anyOf": [made(dice, depth + 1) for _ in range(dice.randint(1, 3))]}
    if kind == "reference":
        return {"$ref": dice.choice(["#/$defs/a", "#/$defs/b"])}
    if kind == "object":
        properties = {f"p{i}": made(dice, depth + 1) for i in range(dice.randint(0, 3))}
        required = [name for name in properties if dice.random() < 0.8]
        closed = {"additionalProperties": False} if dice.random() < 0.7 else {}
        return {"type": "object", "properties": properties, "required": required, **closed}
    return dict(dice.choice(LEAVES))


def said(guided: grammar.Guided, dice: random.Random, most: int) -> str | None:
    """What a model says that likes every token the same; None where it comes to no end."""
    tokens: list[int] = []
    while not guided.stopped and len(tokens) < most:
        token = dice.choice(np.flatnonzero(guided.mask()).tolist())
        guided.accept(token)
        if token in TOKENIZER.eos_ids:
            break
        tokens.append(token)
    else:
        if not guided.stopped:
            return None
    return TOKENIZER.decode(tokens)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_said_is_valid(seed: int) -> None:
    dice, valid = random.Random(seed), 0
    for _ in range(25):
        schema = {**made(dice), "$defs": {"a": dice.choice(LEAVES), "b": made(dice, 2)}}
        matcher = grammar.matcher_of(grammar.of_schema(schema), TOKENIZER)
        if matcher.is_error():
            continue
        try:
            text = said(grammar.Guided(matcher), dice, 200)
        except ParameterError:  # a reference that leads to itself and nowhere else
            assert "$ref" in json.dumps(schema)
            continue
        if text is not None:
            jsonschema.validate(json.loads(text), schema)
            valid += 1
    assert valid >= 8
