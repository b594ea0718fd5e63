"""A tokenizer for models that were never trained: bytes, a few merges, begin and end of text."""

from __future__ import annotations

import numpy as np

from bitnet.tokenizer import Tokenizer
from bitnet.tokenizer.byte_level import BYTE_TO_CHAR

MERGES = ("t h", "th e", "i n", "a n", "e r")
NORMAL, CONTROL = 1, 3


def byte_tokenizer(size: int = 0) -> Tokenizer:
    """size: of the vocabulary at least; words that no text is cut into fill it, so that every token has a text."""
    words = [BYTE_TO_CHAR[i] for i in range(256)] + [merge.replace(" ", "") for merge in MERGES]
    words += [f"{BYTE_TO_CHAR[ord(' ')]}w{i}" for i in range(size - len(words) - 2)]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": [*words, "<s>", "</s>"],
            "tokenizer.ggml.token_type": np.array([NORMAL] * len(words) + [CONTROL] * 2, np.int32),
            "tokenizer.ggml.merges": list(MERGES),
            "tokenizer.ggml.bos_token_id": len(words),
            "tokenizer.ggml.eos_token_id": len(words) + 1,
            "tokenizer.ggml.add_bos_token": True,
        }
    )
