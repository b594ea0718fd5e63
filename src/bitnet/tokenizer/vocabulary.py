"""What a tokenizer consists of, whichever file it came from: tokens, merges, rules and special ids, validated."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from enum import IntEnum
from typing import Any

from bitnet.errors import FormatError, ShapeError
from bitnet.tokenizer.merges import Merge

Json = Mapping[str, Any]
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
MAX_TOKENS = 4_000_000
MAX_PADDING = 1 << 17  # ids that no token has
SPACE = "▁"  # how SentencePiece writes a space

# Tokens that end a turn or a text, known by their names, as llama.cpp knows them.
# fmt: off
END_NAMES = frozenset((
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>",
    "<|endoftext|>", "<|end_of_text|>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<eos>", "</s>", "<｜end▁of▁sentence｜>",
))
# fmt: on
END_OF_TURN_NAMES = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>")


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, from SentencePiece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


CONTROL = frozenset({TokenType.CONTROL, TokenType.UNKNOWN})  # never spelled by text, hidden from the reader


@dataclass(frozen=True, slots=True)
class SpecialIds:
    bos: int | None = None
    eos: int | None = None
    eot: int | None = None
    unk: int | None = None
    pad: int | None = None

    def over(self, other: SpecialIds) -> SpecialIds:
        """These ids, and `other`'s where this has none."""
        return SpecialIds(*(b if a is None else a for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """model: "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE), GGUF's names.

    tokens, types: by id. merges: the first is tried first. ends: every id that ends a text or a turn.
    normalizer, pre_tokenizer: in the form of tokenizer.json. flags: AddedToken options by token.
    add_space_prefix: a space is put before the text, and taken away again when decoding.
    """

    model: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[Merge]
    normalizer: Json | None
    pre_tokenizer: Json | None
    special: SpecialIds
    ends: frozenset[int]
    ignore_merges: bool = False
    add_space_prefix: bool = False
    add_bos: bool = False
    add_eos: bool = False
    chat_template: str | None = None
    flags: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, kind in enumerate(self.types):
            if kind == TokenType.BYTE and byte_value(self.tokens[i]) is None:
                raise FormatError(f"Token {i} is {self.tokens[i]!r}; a byte token is written like <0x0A>.")


def check_tokens(tokens: Sequence[str]) -> None:
    if not tokens:
        raise FormatError("The tokenizer has no tokens.")
    if len(set(tokens)) == len(tokens):
        return
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        if seen.setdefault(token, i) != i:
            raise FormatError(f"Tokens {seen[token]} and {i} are both {token!r}; each may occur once.")


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold it: half of a surrogate pair it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_merges(merges: Sequence[Merge], tokens: Collection[str]) -> None:
    known = frozenset(tokens)
    for i, (left, right) in enumerate(merges):
        for piece in (left, right, left + right):
            if piece not in known:
                raise FormatError(f"Merge {i} is {left!r} + {right!r}, but {piece!r} is not a token.")


def check_id(value: Any, name: str, count: int) -> int | None:
    """A special token's id; absent, or all ones (how some writers say "absent"), is None."""
    if value is None or value == 0xFFFFFFFF or value == -1:
        return None
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise FormatError(f"{name} is {value!r}; expected a token id.")
    if not 0 <= value < count:
        raise FormatError(f"{name} is {value}; the vocabulary has {count} tokens.")
    return int(value)


def pad(tokens: list[str], types: list[int], size: int | None) -> None:
    """Lengthen both lists to the model's vocabulary with tokens that are never used."""
    if size is None:
        return
    if size > MAX_TOKENS:
        raise ShapeError(f"The model's vocabulary has {size} tokens; at most {MAX_TOKENS} are supported.")
    if len(tokens) > size:
        raise ShapeError(f"The tokenizer has {len(tokens)} tokens; the model's vocabulary has {size}.")
    check_padding(size - len(tokens))
    types += [TokenType.UNUSED] * (size - len(tokens))
    tokens += [f"[PAD{i}]" for i in range(len(tokens), size)]


def check_padding(count: int) -> None:
    if count > MAX_PADDING:
        raise FormatError(f"{count:,} ids of the vocabulary have no token; at most {MAX_PADDING:,} may be padding.")


def end_ids(tokens: Sequence[str], types: list[int], given: Collection[int | None]) -> frozenset[int]:
    """Every id that ends a text: those `given`, and tokens known by name, which become control tokens by it."""
    ends = {i for i in given if i is not None}
    ends |= {i for i, token in enumerate(tokens) if token in END_NAMES and types[i] != TokenType.UNUSED}
    for i in ends:
        types[i] = TokenType.CONTROL
    return frozenset(ends)


def end_of_turn(tokens: Sequence[str], ends: Collection[int]) -> int | None:
    by_name = {tokens[i]: i for i in ends}
    return next((by_name[name] for name in END_OF_TURN_NAMES if name in by_name), None)


def byte_value(token: str) -> int | None:
    """The byte of a byte token, "<0x0A>" -> 10; None for any other token."""
    found = _BYTE_TOKEN.fullmatch(token)
    return int(found[1], 16) if found else None
