"""Text to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bitnet.errors import ParameterError
from bitnet.formats.checkpoint import Checkpoint
from bitnet.tokenizer import byte_level
from bitnet.tokenizer.gguf import read_gguf, write_gguf
from bitnet.tokenizer.huggingface import read_folder
from bitnet.tokenizer.library import Encoder, Splitter
from bitnet.tokenizer.tokenizer_json import write_folder
from bitnet.tokenizer.vocabulary import CONTROL, SPACE, TokenType, Vocabulary, byte_value


class Tokenizer:
    """Reads a text the way the model was trained to.

    vocab_size: number of tokens, the unused ones included. bos_id, eos_id: or None. eos_ids: every id that ends a
    text or a turn. add_bos, add_eos: what `encode` adds. chat_template: the stored Jinja source, or None.
    Control tokens (`<|eot_id|>`) in a text are text, unless `parse_special` is set.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        special = vocabulary.special
        self.vocabulary = vocabulary
        self.vocab_size = len(vocabulary.tokens)
        self.bos_id, self.eos_id, self.unk_id, self.pad_id = (special.bos, special.eos, special.unk, special.pad)
        self.eos_ids = vocabulary.ends
        self.add_bos = vocabulary.add_bos and special.bos is not None
        self.add_eos = vocabulary.add_eos and special.eos is not None
        self.add_space_prefix = vocabulary.add_space_prefix
        self.chat_template = vocabulary.chat_template
        self._encoder, self._splitter = Encoder(vocabulary), Splitter(vocabulary)
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """From a GGUF file's key-value pairs. Raises FormatError, ShapeError or UnsupportedError."""
        return cls(read_gguf(metadata))

    @classmethod
    def from_folder(cls, path: str | Path, vocab_size: int | None = None) -> Tokenizer:
        """From tokenizer.json, or tokenizer.model, and the files beside it; padded to the model's `vocab_size`."""
        return cls(read_folder(Path(path), vocab_size))

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Tokenizer:
        if checkpoint.kind == "gguf":
            return cls.from_gguf(checkpoint.metadata)
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        size = checkpoint.metadata.get("vocab_size")
        return cls.from_folder(folder, size if isinstance(size, int) else None)

    def to_gguf(self, vocab_size: int | None = None) -> dict[str, Any]:
        """The `tokenizer.*` pairs from which llama.cpp and `from_gguf` read the same tokenizer."""
        return write_gguf(self.vocabulary, vocab_size)

    def to_folder(self) -> dict[str, Any]:
        """The JSON files, by name, from which transformers and `from_folder` read the same tokenizer."""
        return write_folder(self.vocabulary)

    @property
    def control_tokens(self) -> Mapping[str, int]:
        return self._splitter.ids

    def id_of(self, token: str) -> int | None:
        """A control token's id by its name, such as `<|eot_id|>`."""
        return self._splitter.ids.get(token)

    def encode(self, text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of `text`.

        add_special: put bos before and eos after it where the model wants them.
        parse_special: a control token's name in the text is that token. Never for text of a user.
        Raises ParameterError for a lone surrogate, which no UTF-8 can hold.
        """
        spans = self.control_spans(text) if parse_special else [(None, text)]
        pieces = [piece if token is None else token for token, piece in spans]
        return self._with_special(self.encode_pieces(pieces), add_special)

    def encode_pieces(self, pieces: Iterable[int | str]) -> list[int]:
        """Ids of texts that hold no control tokens, and of the control tokens between them, given as ids."""
        ids: list[int] = []
        for i, piece in enumerate(pieces):
            if isinstance(piece, int):
                ids.append(piece)
            elif piece:
                ids += self._encoder.encode(checked(piece), first=i == 0)
        return ids

    def control_spans(self, text: str) -> list[tuple[int | None, str]]:
        """`text` cut at the names of control tokens: (id, name) for each of them, (None, text) for what is between."""
        return self._splitter.split(checked(text))

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        data = b"".join([self.shown_bytes(i, skip_special) for i in ids])
        text = data.decode("utf-8", "replace")
        return text.removeprefix(" ") if self.add_space_prefix else text

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for: part of a character perhaps; a control token's name; nothing for an unused one."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._token_bytes(token_id)
        return known

    def shown_bytes(self, token_id: int, skip_special: bool = True) -> bytes:
        """`token_bytes`, but nothing for a control token where they are skipped."""
        data = self.token_bytes(token_id)
        return b"" if skip_special and self.is_special(token_id) else data

    def is_special(self, token_id: int) -> bool:
        return self.vocabulary.types[token_id] in CONTROL

    def _token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocab_size:
            raise ParameterError(f"Token id {token_id} is not in the vocabulary of {self.vocab_size} tokens.")
        token, kind = self.vocabulary.tokens[token_id], self.vocabulary.types[token_id]
        if kind == TokenType.UNUSED:
            return b""
        if kind in CONTROL or kind == TokenType.USER_DEFINED:
            return token.encode()
        if self.vocabulary.model == "gpt2":
            return byte_level.to_bytes(token)
        byte = byte_value(token) if kind == TokenType.BYTE else None
        if byte is not None:
            return bytes([byte])
        return token.replace(SPACE, " ").encode()

    def _with_special(self, ids: list[int], add_special: bool) -> list[int]:
        if add_special and self.add_bos and self.bos_id is not None:
            ids.insert(0, self.bos_id)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids


def checked(text: str) -> str:
    """`text`, if it is Unicode: half of a surrogate pair is not."""
    if not isinstance(text, str):
        raise ParameterError(f"A text is expected, not a {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ParameterError(
            f"Character {error.start} of the text is U+{ord(text[error.start]):04X}, half of a surrogate pair."
        ) from error
    return text
