"""A vocabulary in the metadata of a GGUF file, read and written as llama.cpp does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bitnet.errors import FormatError, ShapeError, UnsupportedError
from bitnet.tokenizer.merges import Merge, merges_from_scores, scores_from_merges
from bitnet.tokenizer.pre_tokenizers import name_of, pre_tokenizer
from bitnet.tokenizer.vocabulary import (
    SPACE,
    SpecialIds,
    TokenType,
    Vocabulary,
    check_id,
    check_tokens,
    end_ids,
    end_of_turn,
    is_unicode,
    pad,
)

Metadata = Mapping[str, Any]
_KEY = "tokenizer.ggml."
_ID_KEYS = {"bos": "bos", "eos": "eos", "eot": "eot", "unk": "unknown", "pad": "padding"}
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2, "unk": 0}  # what llama.cpp takes where the file is silent


def read_gguf(metadata: Metadata) -> Vocabulary:
    """Raises FormatError, ShapeError or UnsupportedError, naming the key."""
    model = metadata.get(_KEY + "model")
    if model == "gpt2":
        return _read_byte_level(metadata)
    if model == "llama":
        return _read_sentencepiece(metadata)
    raise UnsupportedError(
        f"tokenizer.ggml.model is {model!r}." if model else "The file has no tokenizer (tokenizer.ggml.model).",
        'Supported: "gpt2" (byte-level BPE) and "llama" (SentencePiece BPE).',
    )


def _read_byte_level(metadata: Metadata) -> Vocabulary:
    tokens, types = _tokens(metadata), _types(metadata)
    merges = _merges(metadata)
    if merges is None:
        raise FormatError("tokenizer.ggml.merges is missing; a gpt2 tokenizer needs it.")
    pre = pre_tokenizer(_pre_name(metadata, tokens))
    special = _special_ids(metadata, len(tokens), {})
    ends = _finish(metadata, tokens, types, special)
    return Vocabulary(
        "gpt2",
        tokens,
        types,
        merges,
        normalizer=pre.normalizer,
        pre_tokenizer=pre.to_json(),
        special=special,
        ends=ends,
        ignore_merges=pre.ignore_merges,
        add_bos=_flag(metadata, _KEY + "add_bos_token", pre.add_bos),
        add_eos=_flag(metadata, _KEY + "add_eos_token", False),
        chat_template=_template(metadata),
    )


def _read_sentencepiece(metadata: Metadata) -> Vocabulary:
    tokens, types = _tokens(metadata), _types(metadata)
    scores = _numbers(metadata, "scores", len(tokens))
    special = _special_ids(metadata, len(tokens), _SENTENCEPIECE_IDS)
    ends = _finish(metadata, tokens, types, special)
    add_space_prefix = _flag(metadata, _KEY + "add_space_prefix", True)
    merges = _merges(metadata)
    if merges is None:
        if scores is None:
            raise FormatError("tokenizer.ggml.scores is missing; a llama tokenizer needs scores or merges.")
        excluded = {t for t, kind in zip(tokens, types, strict=False) if kind != TokenType.NORMAL}
        merges = merges_from_scores(tokens, scores, excluded)
    return Vocabulary(
        "llama",
        tokens,
        types,
        merges,
        normalizer=space_normalizer(add_space_prefix),
        pre_tokenizer=None,
        special=special,
        ends=ends,
        add_space_prefix=add_space_prefix,
        add_bos=_flag(metadata, _KEY + "add_bos_token", True),
        add_eos=_flag(metadata, _KEY + "add_eos_token", False),
        chat_template=_template(metadata),
    )


def space_normalizer(add_space_prefix: bool) -> Mapping[str, Any]:
    prefix = [{"type": "Prepend", "prepend": SPACE}] if add_space_prefix else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {"type": "Sequence", "normalizers": [*prefix, spaces]}


def _pre_name(metadata: Metadata, tokens: Sequence[str]) -> str:
    name = metadata.get(_KEY + "pre")
    if name:
        return str(name)
    # bitnet.cpp's converter wrote no name for BitNet 2B-4T, which uses Llama 3's tokenizer.
    llama3 = str(metadata.get("general.architecture", "")).startswith("bitnet") or "<|begin_of_text|>" in tokens
    return "llama-bpe" if llama3 else "default"


def _finish(metadata: Metadata, tokens: list[str], types: list[int], special: SpecialIds) -> frozenset[int]:
    """The ids that end a text; and both lists as long as the model's vocabulary."""
    eom = check_id(metadata.get(_KEY + "eom_token_id"), _KEY + "eom_token_id", len(tokens))
    for i in (special.bos, special.unk):
        if i is not None and types[i] == TokenType.NORMAL:
            types[i] = TokenType.CONTROL
    key = f"{metadata.get('general.architecture')}.vocab_size"
    size = metadata.get(key)
    if size is not None and not hasattr(size, "__index__"):
        raise FormatError(f"{key} is {size!r}; expected a number.")
    pad(tokens, types, None if size is None else int(size))
    return end_ids(tokens, types, (special.eos, special.eot, eom))


def _tokens(metadata: Metadata) -> list[str]:
    tokens = _array(metadata, "tokens")
    if tokens is None:
        raise FormatError("tokenizer.ggml.tokens is missing.")
    if not all(isinstance(token, str) for token in tokens) or not is_unicode("".join(tokens)):
        _refuse_first(tokens)
    named = [str(token) or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    check_tokens(named)
    return named


def _array(metadata: Metadata, name: str) -> Any:
    values = metadata.get(_KEY + name)
    if values is None or isinstance(values, (list, tuple, np.ndarray)):
        return values
    raise FormatError(f"tokenizer.ggml.{name} is {values!r}; expected an array.")


def _refuse_first(tokens: Sequence[Any]) -> None:
    for i, token in enumerate(tokens):
        if not isinstance(token, str) or not is_unicode(token):
            raise FormatError(f"tokenizer.ggml.tokens[{i}] is {token!r}; expected valid UTF-8 text.")


def _types(metadata: Metadata) -> list[int]:
    count = len(metadata[_KEY + "tokens"])
    types = _numbers(metadata, "token_type", count)
    known = {int(kind) for kind in TokenType}
    if types is None:
        return [TokenType.NORMAL] * count
    return [int(kind) if kind in known else TokenType.NORMAL for kind in types]


def _numbers(metadata: Metadata, name: str, count: int) -> list[float] | None:
    values = _array(metadata, name)
    if values is None:
        return None
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise FormatError(f"tokenizer.ggml.{name} is not an array of numbers.") from error
    if numbers.shape != (count,):
        raise ShapeError(f"tokenizer.ggml.{name} has {numbers.size} entries; tokenizer.ggml.tokens has {count}.")
    if not np.isfinite(numbers).all():
        raise FormatError(f"tokenizer.ggml.{name}[{int(np.argmin(np.isfinite(numbers)))}] is not a finite number.")
    return numbers.tolist()


def _merges(metadata: Metadata) -> list[Merge] | None:
    merges = _array(metadata, "merges")
    if merges is None:
        return None
    if all(isinstance(merge, str) for merge in merges):
        pairs = [merge.partition(" ") for merge in merges]
        if all(left and right and " " not in right for left, _, right in pairs):
            return [(left, right) for left, _, right in pairs]
    return [split_merge(merge, i) for i, merge in enumerate(merges)]


def split_merge(merge: Any, index: int) -> Merge:
    """ "a b" -> ("a", "b"); a token may begin with a space, so the separator is sought from the second character."""
    if isinstance(merge, str):
        cut = merge.find(" ", 1)
        if 0 < cut < len(merge) - 1:
            return merge[:cut], merge[cut + 1 :]
    raise FormatError(f"Merge {index} is {merge!r}; expected two tokens and a space between them.")


def _special_ids(metadata: Metadata, count: int, defaults: Mapping[str, int]) -> SpecialIds:
    def read(name: str, word: str) -> int | None:
        key = f"{_KEY}{word}_token_id"
        fallback = defaults.get(name)
        return check_id(metadata[key], key, count) if key in metadata else check_id(fallback, key, count)

    return SpecialIds(**{name: read(name, word) for name, word in _ID_KEYS.items()})


def _flag(metadata: Metadata, key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if not isinstance(value, (bool, np.bool_)):
        raise FormatError(f"{key} is {value!r}; expected true or false.")
    return bool(value)


def _template(metadata: Metadata) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) and template else None


def write_gguf(vocabulary: Vocabulary, vocab_size: int | None = None) -> dict[str, Any]:
    """Metadata for the file, padded to `vocab_size`. Ids are plain ints (uint32), types int32, scores float32."""
    tokens, types = _written_tokens(vocabulary), list(vocabulary.types)
    kept = frozenset(tokens)
    merges = [(left, right) for left, right in vocabulary.merges if {left, right, left + right} <= kept]
    pad(tokens, types, vocab_size)
    special = vocabulary.special
    eot = special.eot if special.eot is not None else end_of_turn(tokens, vocabulary.ends)
    ids = {"bos": special.bos, "eos": special.eos, "eot": eot, "unk": special.unk, "pad": special.pad}
    metadata: dict[str, Any] = {
        "model": vocabulary.model,
        "pre": _written_pre(vocabulary),
        "tokens": tokens,
        "token_type": np.asarray(types, np.int32),
        "merges": [f"{left} {right}" for left, right in merges] or np.array([], str),
        **{f"{word}_token_id": ids[name] for name, word in _ID_KEYS.items() if ids[name] is not None},
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "add_space_prefix": vocabulary.add_space_prefix,
    }
    if vocabulary.model == "llama":
        metadata["scores"] = np.asarray(scores_from_merges(tokens, merges), np.float32)
    written = {_KEY + name: value for name, value in metadata.items()}
    if vocabulary.chat_template:
        written["tokenizer.chat_template"] = vocabulary.chat_template
    return written


def _written_tokens(vocabulary: Vocabulary) -> list[str]:
    """llama.cpp looks for a user-defined token in the text as it is, where a space is a space."""
    if vocabulary.model != "llama":
        return list(vocabulary.tokens)
    written = [
        token.replace(SPACE, " ") if kind == TokenType.USER_DEFINED else token
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    ]
    return written if len(set(written)) == len(written) else list(vocabulary.tokens)


def _written_pre(vocabulary: Vocabulary) -> str:
    if vocabulary.model == "llama":
        return "default"
    return name_of(vocabulary.pre_tokenizer, vocabulary.ignore_merges, vocabulary.normalizer is not None)


__all__ = ["read_gguf", "space_normalizer", "split_merge", "write_gguf"]
