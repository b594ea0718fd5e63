"""The Hugging Face `tokenizers` library, with its failures (bare Exception, Rust panics) made into ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

from bitnet.errors import BitNetError, FormatError
from bitnet.tokenizer.vocabulary import CONTROL, TokenType, Vocabulary, check_merges

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

Json = Mapping[str, Any]
MAX_GROWTH = 64  # times that a normalizer may lengthen a text
_EMPTY: Json = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "post_processor": None}


@contextmanager
def guarded(doing: str) -> Iterator[None]:
    """FormatError for whatever the library throws; a Rust panic is a BaseException of no public type."""
    try:
        yield
    except BitNetError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise FormatError(f"{doing}: {error}") from error
        raise


class Encoder:
    """Text, none of it control tokens, to ids.

    In the library's vocabulary a control token bears a name with a raw space, which no text can spell: byte-level BPE
    writes spaces as Ġ, SentencePiece as ▁. So `<|eot_id|>` in text stays text, whatever the merges say.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        with guarded("The tokenizer cannot be built"):
            self._first = _tokenizer(vocabulary, vocabulary.pre_tokenizer)
            inner = _inner_pre_tokenizer(vocabulary.pre_tokenizer)
            self._inner = self._first
            if inner is not vocabulary.pre_tokenizer:
                self._inner = _tokenizer(vocabulary, inner, self._first.model)

    def encode(self, text: str, first: bool = True) -> list[int]:
        """first: the text stands at the beginning, where some tokenizers put a space before it."""
        tokenizer = self._first if first else self._inner
        with guarded("The text cannot be encoded"):
            return tokenizer.encode(text, add_special_tokens=False).ids


class Splitter:
    """Cuts text at control tokens, by the library's own matcher (Aho-Corasick, the longest match from the left)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        from tokenizers import Tokenizer, models

        self.ids = {token: i for i, token in _of_types(vocabulary, CONTROL)}
        with guarded("The control tokens cannot be used"):
            # Text between control tokens is one unknown word; "" cannot be confused with a control token.
            self._matcher = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
            self._matcher.add_special_tokens([_added(vocabulary, token, special=True) for token in self.ids])
            self._names = {self._matcher.token_to_id(token): token for token in self.ids}

    def split(self, text: str) -> list[tuple[int | None, str]]:
        """The text's pieces in order, each with its id where it is a control token."""
        if not text or not self.ids:
            return [(None, text)]
        with guarded("The text cannot be split"):
            found = self._matcher.encode(text, add_special_tokens=False)
        names = [self._names.get(i) for i in found.ids]  # found.tokens have the spaces around them that some take along
        pieces = zip(names, found.offsets, strict=True)
        return [(self.ids[name] if name else None, text[start:end]) for name, (start, end) in pieces]


def check_json(tokenizer_json: Json) -> None:
    """Ask the library whether the rules of a tokenizer.json make sense to it, and whether texts stay small by them."""
    growth = _growth(tokenizer_json.get("normalizer"))
    if growth > MAX_GROWTH:
        raise FormatError(f"tokenizer.json's normalizer could make a text {growth:,} times as long.")
    with guarded("tokenizer.json is not understood"):
        _shell(tokenizer_json.get("normalizer"), tokenizer_json.get("pre_tokenizer"))


def _growth(normalizer: Any) -> int:
    """How many characters replacements may make of one: each multiplies what those before it have made."""
    match normalizer:
        case {"type": "Sequence", "normalizers": list(parts)}:
            return prod(map(_growth, parts))
        case {"type": "Replace", "content": str(content)}:
            return 1 + len(content)  # a pattern may match between two characters
    return 1


def _shell(normalizer: Json | None, pre_tokenizer: Json | None) -> Tokenizer:
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    rules = {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": None, "model": model}
    return Tokenizer.from_str(json.dumps({**_EMPTY, **rules}))


def _tokenizer(vocabulary: Vocabulary, pre_tokenizer: Json | None, model: Any = None) -> Tokenizer:
    tokenizer = _shell(vocabulary.normalizer, pre_tokenizer)
    tokenizer.model = _model(vocabulary) if model is None else model
    user_defined = [
        _added(vocabulary, token, special=False) for _, token in _of_types(vocabulary, {TokenType.USER_DEFINED})
    ]
    tokenizer.add_tokens(user_defined)
    return tokenizer


def _model(vocabulary: Vocabulary) -> Any:
    from tokenizers import models

    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    hidden = {token for _, token in _of_types(vocabulary, CONTROL)}
    for token in hidden:
        vocab[_hidden(token)] = vocab.pop(token)
    merges = [
        (left, right)
        for left, right in vocabulary.merges
        if left not in hidden and right not in hidden and left + right not in hidden
    ]
    sentencepiece = vocabulary.model == "llama"
    unk_id = vocabulary.special.unk if sentencepiece else None
    unk = None if unk_id is None else vocabulary.tokens[unk_id]
    try:
        return models.BPE(
            vocab,
            merges,
            unk_token=_hidden(unk) if unk in hidden else unk,
            fuse_unk=sentencepiece,
            byte_fallback=sentencepiece,
            ignore_merges=vocabulary.ignore_merges,
        )
    except Exception:
        check_merges(vocabulary.merges, vocabulary.tokens)
        raise


def _hidden(token: str) -> str:
    """The name of a control token that no text can spell."""
    return f" \0{token}"


def _inner_pre_tokenizer(pre_tokenizer: Any) -> Any:
    """As `pre_tokenizer`, for text that does not stand at the beginning."""
    match pre_tokenizer:
        case {"type": "Metaspace", "prepend_scheme": "first", **rest}:
            return {**rest, "type": "Metaspace", "prepend_scheme": "never"}
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            inner = [_inner_pre_tokenizer(part) for part in parts]
            same = all(a is b for a, b in zip(inner, parts, strict=True))
            return pre_tokenizer if same else {"type": "Sequence", "pretokenizers": inner}
    return pre_tokenizer


def _of_types(
    vocabulary: Vocabulary, types: Sequence[TokenType] | frozenset[TokenType] | set[TokenType]
) -> Iterator[tuple[int, str]]:
    return (
        (i, token)
        for i, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in types
    )


def _added(vocabulary: Vocabulary, token: str, special: bool) -> AddedToken:
    from tokenizers import AddedToken

    options = {"normalized": False, **vocabulary.flags.get(token, {})}
    if special:
        options["normalized"] = False
    return AddedToken(token, special=special, **options)
