"""From token ids to text as they come, in whole characters."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet.tokenizer.tokenizer import Tokenizer


class StreamDecoder:
    """The pieces of `push` and `flush`, joined, are `tokenizer.decode(ids)`.

    A character whose bytes have not all come is held back; bytes that can never become one are U+FFFD.
    strip_space: drop the space that SentencePiece puts before a text; False where the ids continue an earlier text.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True, strip_space: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._strip_space = strip_space and tokenizer.add_space_prefix
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._text(self._tokenizer.shown_bytes(token_id, self._skip_special))

    def flush(self) -> str:
        return self._text(b"", final=True)

    def _text(self, data: bytes, final: bool = False) -> str:
        text = self._utf8.decode(data, final)
        if text and self._strip_space:
            self._strip_space = False
            return text.removeprefix(" ")
        return text
