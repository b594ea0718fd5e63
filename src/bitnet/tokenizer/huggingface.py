"""A vocabulary in a Hugging Face folder: tokenizer.json and the files that say which tokens are special."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.bounded_json import parse_object
from bitnet.formats.source import read_file
from bitnet.tokenizer.gguf import split_merge
from bitnet.tokenizer.library import check_json
from bitnet.tokenizer.merges import Merge
from bitnet.tokenizer.vocabulary import (
    MAX_TOKENS,
    SPACE,
    SpecialIds,
    TokenType,
    Vocabulary,
    byte_value,
    check_id,
    check_padding,
    check_tokens,
    end_ids,
    end_of_turn,
    is_unicode,
    pad,
)

Json = Mapping[str, Any]
MAX_BYTES = 256 << 20
MAX_MARKS = 1 << 24  # of JSON: four times those of the largest tokenizer.json
MAX_TEMPLATE = 16 << 20  # bytes of chat_template.jinja
_ROLES = ("bos", "eos", "unk", "pad")
_OPTIONS = ("lstrip", "rstrip", "single_word", "normalized")


def read_folder(folder: Path, vocab_size: int | None = None) -> Vocabulary:
    """Raises FormatError, ShapeError or UnsupportedError, naming the file."""
    settings = Settings(folder)
    if (folder / "tokenizer.json").is_file():
        return _read_tokenizer_json(_json(folder / "tokenizer.json"), settings, vocab_size)
    if (folder / "tokenizer.model").is_file():
        from bitnet.tokenizer.sentencepiece_model import read_sentencepiece

        return read_sentencepiece(folder / "tokenizer.model", settings, vocab_size)
    raise FormatError(f"{folder} has neither tokenizer.json nor tokenizer.model.")


def _json(path: Path) -> dict[str, Any]:
    return parse_object(read_file(path, MAX_BYTES), path.name, MAX_MARKS)


class Settings:
    """tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json: each may be missing."""

    def __init__(self, folder: Path) -> None:
        def read(name: str) -> Json:
            return _json(folder / name) if (folder / name).is_file() else {}

        self.tokenizer, self.special_map = (read("tokenizer_config.json"), read("special_tokens_map.json"))
        self.generation, self.model = (read("generation_config.json"), read("config.json"))
        self.chat_template = _template(self.tokenizer.get("chat_template"), folder / "chat_template.jinja")

    def special_tokens(self) -> dict[str, str]:
        """Role ("bos", ...) to token."""
        found: dict[str, str] = {}
        for role in _ROLES:
            for source in (self.tokenizer, self.special_map):
                token = _content(source.get(f"{role}_token"))
                if token:
                    found.setdefault(role, token)
        return found

    def additional(self) -> set[str]:
        """Tokens that are special without a role."""
        listed: list[Any] = []
        for source in (self.tokenizer, self.special_map):
            for key in ("additional_special_tokens", "extra_special_tokens"):
                tokens = source.get(key)
                listed += tokens.values() if isinstance(tokens, dict) else tokens if isinstance(tokens, list) else []
        return {token for token in map(_content, listed) if token}

    def added(self) -> list[Json]:
        """Tokens that only tokenizer_config.json knows, in the form of tokenizer.json's `added_tokens`."""
        decoder = self.tokenizer.get("added_tokens_decoder")
        if not isinstance(decoder, dict):
            return []
        return [{**token, "id": int(i)} for i, token in decoder.items() if i.isdecimal() and isinstance(token, dict)]

    def special_ids(self, ids: Mapping[str, int], count: int) -> SpecialIds:
        """By name from the tokenizer's files; bos and eos else by number from the model's."""
        found: dict[str, int | None] = {role: ids.get(token) for role, token in self.special_tokens().items()}
        for role in ("bos", "eos"):
            if found.get(role) is None:
                value = self.generation.get(f"{role}_token_id", self.model.get(f"{role}_token_id"))
                first = value[0] if isinstance(value, list) and value else None if isinstance(value, list) else value
                found[role] = check_id(first, f"{role}_token_id", count)
        return SpecialIds(**found)

    def ends(self, count: int) -> list[int | None]:
        """generation_config.json's list of ids that end a text."""
        value = self.generation.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        return [check_id(i, "generation_config.json's eos_token_id", count) for i in values]

    def flag(self, name: str, default: bool) -> bool:
        value = self.tokenizer.get(name)
        return value if isinstance(value, bool) else default


def _content(token: Any) -> str | None:
    """A token written as text or as an object with its options."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) and value else None


def _template(stored: Any, file: Path) -> str | None:
    if file.is_file():
        return read_file(file, MAX_TEMPLATE).decode("utf-8", "replace")
    if isinstance(stored, list):
        named = {t.get("name"): t.get("template") for t in stored if isinstance(t, dict)}
        stored = named.get("default", next(iter(named.values()), None))
    return stored if isinstance(stored, str) and stored else None


def finish(vocabulary: Vocabulary, settings: Settings, vocab_size: int | None) -> Vocabulary:
    """Special ids, the ends of a text, and the model's size: the same for both kinds of file."""
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    ids = {token: i for i, token in enumerate(tokens)}
    merged = settings.special_ids(ids, len(tokens)).over(vocabulary.special)
    for token in settings.additional() | set(settings.special_tokens().values()):
        if token in ids and types[ids[token]] in (TokenType.NORMAL, TokenType.USER_DEFINED):
            types[ids[token]] = TokenType.CONTROL
    if merged.unk is not None and vocabulary.model == "llama":
        types[merged.unk] = TokenType.UNKNOWN
    ends = end_ids(tokens, types, [merged.eos, *settings.ends(len(tokens))])
    pad(tokens, types, vocab_size)
    eot = end_of_turn(tokens, ends)
    return replace(
        vocabulary,
        tokens=tokens,
        types=types,
        special=replace(merged, eot=eot),
        ends=ends,
        add_bos=settings.flag("add_bos_token", vocabulary.add_bos),
        add_eos=settings.flag("add_eos_token", vocabulary.add_eos),
        chat_template=settings.chat_template,
    )


def _read_tokenizer_json(file: Json, settings: Settings, vocab_size: int | None) -> Vocabulary:
    check_json(file)
    model = file.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        found = model.get("type") if isinstance(model, dict) else model
        raise UnsupportedError(f"tokenizer.json holds a {found} model.", "Supported: BPE.")
    kind = _kind(file, model)
    added = [*_objects(file.get("added_tokens")), *settings.added()]
    tokens = _tokens(model.get("vocab"), added)
    first, last = _wrapping(file.get("post_processor"))
    ids = {token: i for i, token in enumerate(tokens)}
    unk = model.get("unk_token")
    vocabulary = Vocabulary(
        kind,
        tokens,
        _types(tokens, added, ids, byte_fallback=bool(model.get("byte_fallback"))),
        _merges(model.get("merges")),
        normalizer=file.get("normalizer"),
        pre_tokenizer=file.get("pre_tokenizer"),
        special=SpecialIds(bos=ids.get(first), eos=ids.get(last), unk=ids.get(unk) if isinstance(unk, str) else None),
        ends=frozenset(),
        ignore_merges=bool(model.get("ignore_merges")),
        add_space_prefix=kind == "llama" and _strips_space(file.get("decoder")),
        add_bos=first in ids,
        add_eos=last in ids,
        flags={t["content"]: {o: bool(t.get(o)) for o in _OPTIONS} for t in added if _content(t)},
    )
    return finish(vocabulary, settings, vocab_size)


def _kind(file: Json, model: Json) -> str:
    """Byte-level BPE or SentencePiece's, as GGUF calls them."""
    rules = str(file.get("pre_tokenizer")) + str(file.get("normalizer"))
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix") or model.get("dropout"):
        raise UnsupportedError("tokenizer.json's BPE uses a subword prefix, a word suffix or dropout.")
    if "'ByteLevel'" in rules:
        return "gpt2"
    if model.get("byte_fallback") or SPACE in rules:
        return "llama"
    raise UnsupportedError("tokenizer.json's BPE is neither byte-level nor SentencePiece's.")


def _objects(value: Any) -> list[Json]:
    found = value if isinstance(value, list) else []
    return [entry for entry in found if isinstance(entry, dict)]


def _tokens(vocab: Any, added: Sequence[Json]) -> list[str]:
    """Tokens by id; an id that nothing has becomes [PADn], as llama.cpp's converter names it."""
    if not isinstance(vocab, dict) or not vocab:
        raise FormatError("tokenizer.json's model has no vocab.")
    by_id: dict[int, str] = {}
    for token, i in [*vocab.items(), *((_content(t), t.get("id")) for t in added)]:
        if not isinstance(token, str) or isinstance(i, bool) or not isinstance(i, int):
            raise FormatError(f"tokenizer.json: token {token!r} has the id {i!r}; expected a number.")
        if not 0 <= i < MAX_TOKENS:
            raise FormatError(f"tokenizer.json: token {token!r} has the id {i}; expected 0 to {MAX_TOKENS - 1}.")
        if by_id.setdefault(i, token) != token:
            raise FormatError(f"tokenizer.json: {by_id[i]!r} and {token!r} both have the id {i}.")
        if not is_unicode(token):
            raise FormatError(f"tokenizer.json: token {i} is {token!r}, which is not Unicode text.")
    check_padding(max(by_id) + 1 - len(by_id))
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(max(by_id) + 1)]
    check_tokens(tokens)
    return tokens


def _types(tokens: list[str], added: Sequence[Json], ids: Mapping[str, int], byte_fallback: bool) -> list[int]:
    types: list[int] = [TokenType.NORMAL] * len(tokens)
    for i, token in enumerate(tokens):
        if token == f"[PAD{i}]":
            types[i] = TokenType.UNUSED
        elif byte_fallback and byte_value(token) is not None:
            types[i] = TokenType.BYTE
    for entry in added:
        content = _content(entry)
        if content:
            types[ids[content]] = TokenType.CONTROL if entry.get("special") else TokenType.USER_DEFINED
    return types


def _merges(merges: Any) -> list[Merge]:
    """Old files write "a b", newer ones ["a", "b"]."""
    if not isinstance(merges, list):
        raise FormatError("tokenizer.json's model has no merges.")
    return [_merge(merge, i) for i, merge in enumerate(merges)]


def _merge(merge: Any, index: int) -> Merge:
    match merge:
        case [str(left), str(right)]:
            return left, right
    return split_merge(merge, index)


def _wrapping(processor: Any) -> tuple[str, str]:
    """The tokens that a post-processor puts before and after a text, or ""."""
    match processor:
        case {"type": "Sequence", "processors": [*parts]}:
            return next((found for found in map(_wrapping, parts) if any(found)), ("", ""))
        case {"type": "TemplateProcessing", "single": [*single]}:
            names = [_special_name(part) for part in single]
            text = names.index(None) if None in names else len(names)
            return (names[0] or "") if text > 0 else "", (names[-1] or "") if text < len(names) - 1 else ""
    return "", ""


def _special_name(part: Any) -> str | None:
    match part:
        case {"SpecialToken": {"id": str(name)}}:
            return name
    return None


def _strips_space(decoder: Any) -> bool:
    match decoder:
        case {"type": "Sequence", "decoders": [*parts]}:
            return any(map(_strips_space, parts))
        case {"type": "Strip", "content": " ", "start": int(start)}:
            return start > 0
        case {"type": "Metaspace", **rest}:
            return rest.get("prepend_scheme", "always") != "never" and rest.get("add_prefix_space", True) is not False
    return False
