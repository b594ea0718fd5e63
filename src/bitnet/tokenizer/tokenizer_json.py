"""A vocabulary as the files of a Hugging Face folder: the reverse of huggingface.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitnet.tokenizer.vocabulary import CONTROL, SPACE, TokenType, Vocabulary


def write_folder(vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of each file by its name."""
    special = vocabulary.special
    roles = {"bos": special.bos, "eos": special.eos, "unk": special.unk, "pad": special.pad}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": vocabulary.tokens[i] for role, i in roles.items() if i is not None},
    }
    if vocabulary.chat_template:
        settings["chat_template"] = vocabulary.chat_template
    generation: dict[str, Any] = {"eos_token_id": sorted(vocabulary.ends)}
    if special.bos is not None:
        generation["bos_token_id"] = special.bos
    return {
        "tokenizer.json": tokenizer_json(vocabulary),
        "tokenizer_config.json": settings,
        "generation_config.json": generation,
    }


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    sentencepiece, unk = vocabulary.model == "llama", vocabulary.special.unk
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            added_token(vocabulary, i)
            for i, kind in enumerate(vocabulary.types)
            if kind in (*CONTROL, TokenType.USER_DEFINED)
        ],
        "normalizer": vocabulary.normalizer,
        "pre_tokenizer": vocabulary.pre_tokenizer,
        "post_processor": post_processor(vocabulary),
        "decoder": decoder(vocabulary),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": vocabulary.tokens[unk] if sentencepiece and unk is not None else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": sentencepiece,
            "byte_fallback": sentencepiece,
            "ignore_merges": vocabulary.ignore_merges,
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
            "merges": [list(merge) for merge in vocabulary.merges],
        },
    }


def added_token(vocabulary: Vocabulary, i: int) -> dict[str, Any]:
    token, special = vocabulary.tokens[i], vocabulary.types[i] in CONTROL
    options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": token, **options, **vocabulary.flags.get(token, {}), "special": special}


def post_processor(vocabulary: Vocabulary) -> Mapping[str, Any] | None:
    """Puts the tokens that begin and end a text around it."""
    special = vocabulary.special
    first = [special.bos] if vocabulary.add_bos and special.bos is not None else []
    last = [special.eos] if vocabulary.add_eos and special.eos is not None else []
    if not first + last:
        return None

    def template(sequence: str, kind: int) -> list[Mapping[str, Any]]:
        def mark(i: int) -> Mapping[str, Any]:
            return {"SpecialToken": {"id": vocabulary.tokens[i], "type_id": kind}}

        return [*map(mark, first), {"Sequence": {"id": sequence, "type_id": kind}}, *map(mark, last)]

    tokens = {vocabulary.tokens[i]: i for i in first + last}
    return {
        "type": "TemplateProcessing",
        "single": template("A", 0),
        "pair": template("A", 0) + template("B", 1),
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in tokens.items()},
    }


def decoder(vocabulary: Vocabulary) -> Mapping[str, Any]:
    if vocabulary.model == "gpt2":
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    parts: list[Mapping[str, Any]] = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if vocabulary.add_space_prefix:
        parts.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": parts}
