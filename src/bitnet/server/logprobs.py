"""Log-probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from bitnet.engine import TokenLogprob
from bitnet.server.generation import Piece
from bitnet.tokenizer import StreamDecoder, Tokenizer

LEAST = -9999.0  # what JSON gets in place of minus infinity


def spelled(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "replace")


class ChatLogprobs:
    """Entries for the tokens whose text has been shown: what belongs to a stop string or ends the text has none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder = tokenizer, StreamDecoder(tokenizer, strip_space=False)
        self._held: deque[tuple[int, TokenLogprob]] = deque()  # with where in the text each begins
        self._decoded = self._shown = 0

    def push(self, piece: Piece) -> list[dict[str, Any]]:
        if piece.token is not None and piece.logprob is not None:
            self._held.append((self._decoded, piece.logprob))
            self._decoded += len(self._decoder.push(piece.token))
        self._shown += len(piece.text)
        found = []
        while self._held and self._held[0][0] < self._shown:
            found.append(self._entry(self._held.popleft()[1]))
        return found

    def _entry(self, logprob: TokenLogprob) -> dict[str, Any]:
        top = [self._alternative(token, value) for token, value in logprob.top]
        return {**self._alternative(logprob.token, logprob.logprob), "top_logprobs": top}

    def _alternative(self, token: int, logprob: float) -> dict[str, Any]:
        data = self._tokenizer.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(logprob, LEAST), "bytes": list(data)}


@dataclass(slots=True)
class LegacyLogprobs:
    """Parallel lists, over prompt and text where the prompt is echoed; every token counts, the end of text too.

    A token that is no text by itself is written "bytes:\\xf0\\x9f", as OpenAI did.
    """

    tokenizer: Tokenizer
    decoder: StreamDecoder
    offset: int = 0

    def prompt(self, ids: list[int], logprobs: list[TokenLogprob]) -> dict[str, list[Any]]:
        """The first token has nothing before it that could predict it."""
        return self.lists(list(zip(ids, [None, *logprobs])))

    def lists(self, tokens: list[tuple[int, TokenLogprob | None]]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token, logprob in tokens:
            found["tokens"].append(self.name(token))
            found["token_logprobs"].append(logprob and max(logprob.logprob, LEAST))
            found["top_logprobs"].append(logprob and self._top(logprob))
            found["text_offset"].append(self.offset)
            self.offset += len(self.decoder.push(token))
        return found

    def _top(self, logprob: TokenLogprob) -> dict[str, float]:
        """The likeliest, and the token itself where it is none of them. Of equal names the likelier counts."""
        found: dict[str, float] = {}
        for token, value in (*logprob.top, (logprob.token, logprob.logprob)):
            found.setdefault(self.name(token), max(value, LEAST))
        return found

    def name(self, token: int) -> str:
        data = self.tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
