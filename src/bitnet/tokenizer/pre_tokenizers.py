"""How byte-level BPE cuts text into words, by the names GGUF uses in `tokenizer.ggml.pre`.

The rules are those of the models' own tokenizer.json; llama.cpp's are the same, spelled for its own matcher.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitnet.errors import UnsupportedError

Json = Mapping[str, Any]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGIT = r"\p{N}"
THREE_DIGITS = r"[0-9][0-9][0-9]"
NFC: Json = {"type": "NFC"}


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """rules: regular expressions, each applied to the pieces that the one before has left.

    ignore_merges: a word that is a token is that token, however it would be merged.
    normalizer: what the models with this rule do to text first, which the GGUF file does not say.
    """

    rules: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    normalizer: Json | None = None

    def to_json(self) -> Json:
        """In the form of tokenizer.json's `pre_tokenizer`."""
        splits = [
            {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
            for rule in self.rules
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"type": "Sequence", "pretokenizers": [*splits, byte_level]}


_LLAMA_BPE = PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer((QWEN2,), normalizer=NFC)
_GPT2 = PreTokenizer((GPT2,))
_SMOLLM = PreTokenizer((DIGIT, GPT2))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA_BPE),
    **dict.fromkeys(("smaug-bpe", "dbrx"), PreTokenizer((LLAMA3,))),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "stablelm2": PreTokenizer((QWEN2,)),
    "qwen35": PreTokenizer((QWEN35,), normalizer=NFC),
    **dict.fromkeys(("gpt-2", "gpt2", "phi-2", "olmo", "mpt", "jais", "trillion"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), _SMOLLM),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE_DIGITS)),
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", THREE_DIGITS)),
}


def pre_tokenizer(name: str) -> PreTokenizer:
    if name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            f"tokenizer.ggml.pre is {name!r}, a rule this version does not know.",
            f"Known: {', '.join(PRE_TOKENIZERS)}.",
        )
    return PRE_TOKENIZERS[name]


def name_of(pre: Json | None, ignore_merges: bool, normalized: bool) -> str:
    """The GGUF name of a tokenizer.json's byte-level `pre_tokenizer`; the reverse of `PreTokenizer.to_json`."""
    rules = _rules(pre)
    close = [name for name, known in PRE_TOKENIZERS.items() if known.rules == rules]
    for name in close:
        known = PRE_TOKENIZERS[name]
        if known.ignore_merges == ignore_merges and (known.normalizer is not None) == normalized:
            return name
    if close:
        return close[0]
    raise UnsupportedError(
        f"GGUF has no name known here for this pre-tokenizer: {rules}.", "The model can be run from its own folder."
    )


def _rules(pre: Json | None) -> tuple[str, ...]:
    match pre:
        case {"type": "Sequence", "pretokenizers": parts}:
            return tuple(rule for part in parts for rule in _rules(part))
        case {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", **rest} if not rest.get("invert"):
            return (rule,)
        case {"type": "ByteLevel", "add_prefix_space": True}:
            return ("(a space before the text)",)
        case {"type": "ByteLevel", **rest}:
            return (GPT2,) if rest.get("use_regex", True) else ()
        case {"type": "Digits", "individual_digits": True}:
            return (DIGIT,)
    return (f"({pre['type'] if pre and 'type' in pre else 'none'})",)
