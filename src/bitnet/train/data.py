"""From texts and conversations to rows of tokens on disk.

A token is a 32-bit word: its id, whether it is learnt (the answers of a conversation are, the questions are not), and
whether a document begins with it. Rows hold whole documents side by side; attention and targets stay within one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, ParameterError
from bitnet.formats.atomic import replacing
from bitnet.tokenizer import Tokenizer
from bitnet.tokenizer.chat import ChatTemplate
from bitnet.train.records import records

Words = NDArray[np.uint32]
LEARNT, BEGINS, ID = np.uint32(1 << 31), np.uint32(1 << 30), np.uint32((1 << 24) - 1)


def words_of(ids: Sequence[int], learnt: Sequence[bool] | None = None) -> Words:
    """A document as words; all of it is learnt unless told otherwise."""
    words = np.asarray(ids, np.uint32) & ID
    words |= np.where(np.ones(len(ids), bool) if learnt is None else np.asarray(learnt, bool), LEARNT, np.uint32(0))
    words[:1] |= BEGINS
    return words


def pack(documents: Iterable[Words], length: int, filler: int, open_rows: int = 48) -> Iterator[Words]:
    """Whole documents into rows of `length` words, filled up with documents of one `filler`; longer ones are cut.

    Best fit: a document goes where it leaves the least room; when it fits nowhere, the fullest row is done.
    """
    rows: list[tuple[int, list[Words]]] = []  # words so far, and what they are
    for document in documents:
        for start in range(0, len(document), length):
            piece = document[start : start + length].copy()
            piece[0] |= BEGINS
            fitting = [i for i, (filled, _) in enumerate(rows) if filled + len(piece) <= length]
            if fitting:
                best = max(fitting, key=lambda i: rows[i][0])
                rows[best] = rows[best][0] + len(piece), [*rows[best][1], piece]
            else:
                rows.append((len(piece), [piece]))
            if len(rows) > open_rows:
                yield whole(rows.pop(max(range(len(rows)), key=lambda i: rows[i][0]))[1], length, filler)
    yield from (whole(pieces, length, filler) for _, pieces in rows)


def whole(pieces: list[Words], length: int, filler: int) -> Words:
    row = np.full(length, np.uint32(filler) | BEGINS, np.uint32)
    joined = np.concatenate(pieces)
    row[: len(joined)] = joined
    return row


def write_rows(path: Path, rows: Iterable[Words]) -> int:
    """The rows as one flat file, complete or not at all; returns how many."""
    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(row.astype("<u4").tobytes())
            count += 1
    return count


def open_rows(path: Path, length: int) -> Words:
    """The file as (rows, length), mapped."""
    size = path.stat().st_size
    if not size or size % (4 * length):
        raise FormatError(
            f"{path} has {size} bytes, which are no rows of {length} tokens.", "Delete it: it is made anew."
        )
    return np.memmap(path, "<u4", "r").reshape(-1, length)


@dataclass(frozen=True, slots=True)
class Source:
    """path: a text file; *.jsonl, *.json, *.parquet or *.arrow; or a folder of these, such as a Hugging Face dataset on
    disk.

    A record has the text under `text`, or a conversation under `messages` ([{"role", "content"}]), where it may have
    the `tools` that were offered. separator: the line between the documents of a text file.
    """

    path: Path
    text: str = "text"
    messages: str = "messages"
    separator: str = "<|endoftext|>"


class Encoder:
    """Documents as the model will read them when it is run: text between its begin and end, conversations as its chat
    template writes them, of which the assistant's turns are learnt."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.tokenizer, self.template = tokenizer, template
        end = tokenizer.eos_id
        if end is None:
            raise ParameterError("The tokenizer has no end-of-text token, without which a model cannot learn to stop.")
        self.end = end

    def documents(self, source: Source) -> Iterator[Words]:
        for number, record in enumerate(records(source.path, source.separator), 1):
            if is_blank(record, source):
                continue
            try:
                yield self.document(record, source)
            except ParameterError as error:
                raise ParameterError(f"{source.path}, record {number}: {error.message}", error.hint) from error

    def document(self, record: Mapping[str, Any], source: Source) -> Words:
        if isinstance(record.get(source.text), str):
            ids = self.tokenizer.encode(record[source.text])
            return words_of(ids if ids and ids[-1] == self.end else [*ids, self.end])
        if isinstance(record.get(source.messages), list):
            return self.conversation(record[source.messages], record.get("tools"))
        known = ", ".join(sorted(record)) or "nothing"
        raise ParameterError(
            f"neither {source.text!r} holds a text nor {source.messages!r} a list of messages; there is: {known:.200}.",
            "Name the fields with text: and messages: beside path:.",
        )

    def conversation(self, messages: list[Any], tools: Any = None) -> Words:
        """What follows a prompt for the assistant's turn, up to the end of that turn, is learnt.

        It is tokenised apart from the prompt, as when the model is run: "Assistant: " and "Hi", not " Hi" after ":".
        """
        self.check_tools(messages)
        offered = {"tools": tools} if tools else {}

        def pieces(turns: list[Any], add_generation_prompt: bool) -> list[int | str]:
            return self.template.pieces(turns, self.tokenizer, add_generation_prompt, **offered)

        ids: list[int] = []
        learnt: list[bool] = []

        def add(more: list[int | str], learn: bool) -> None:
            found = self.tokenizer.encode_pieces(["", *more] if ids else more)  # "": a text goes on
            ids.extend(found)
            learnt.extend([learn] * len(found))

        done: list[int | str] = []
        for i, message in enumerate(messages):
            if i and isinstance(message, Mapping) and message.get("role") == "assistant":
                prompt = pieces(messages[:i], add_generation_prompt=True)
                told = pieces(messages[: i + 1], add_generation_prompt=False)
                add(behind(done, prompt), learn=False)
                add(behind(prompt, told), learn=True)
                done = told
        add(behind(done, pieces(messages, add_generation_prompt=False)), learn=False)
        return words_of(ids, learnt)

    def check_tools(self, messages: list[Any]) -> None:
        """A template that knows no calls would write them as nothing, or as "None"."""
        if "tool_calls" in self.template.source:
            return
        for i, message in enumerate(messages):
            if isinstance(message, Mapping) and message.get("tool_calls"):
                raise ParameterError(
                    f"messages[{i}] calls a tool, which the chat template ({self.template.name}) cannot write.",
                    "Leave such conversations out, or train a model whose template has tool_calls.",
                )


def is_blank(record: Mapping[str, Any], source: Source) -> bool:
    """Nothing but an empty text: a model would learn to end before it begins."""
    text = record.get(source.text, ".")
    return not record.get(source.messages) and (text is None or (isinstance(text, str) and not text.strip()))


def behind(start: list[int | str], pieces: list[int | str]) -> list[int | str]:
    """What `pieces` have after `start`."""
    if not start:
        return pieces
    at = len(start) - 1
    last, here = start[-1], pieces[at] if at < len(pieces) else None
    if pieces[:at] == start[:-1]:
        if here == last:
            return pieces[at + 1 :]
        if isinstance(here, str) and isinstance(last, str) and here.startswith(last):
            return [here[len(last) :], *pieces[at + 1 :]]
    raise ParameterError(
        "the chat template writes a turn differently when another follows it, so that what the model says cannot be "
        "told from what it reads.",
        "Split the conversation into one record for each answer.",
    )


def prepare(path: Path, sources: Sequence[Source], encoder: Encoder, length: int, limit: int | None = None) -> Words:
    """The rows of all sources, made once as the file `path` and then found there; `limit` tokens of them at most."""
    if not path.exists():
        documents = (words for source in sources for words in encoder.documents(source) if len(words) > 1)
        rows = pack(documents, length, encoder.end)
        count = write_rows(path, rows if limit is None else first(rows, max(1, limit // length)))
        names = ", ".join(str(source.path) for source in sources)
        if not count or not any(learnt_tokens(row) for row in open_rows(path, length)):
            os.unlink(path)
            if not count:
                raise ParameterError(f"There is no text in {names}.")
            raise ParameterError(
                f"There is nothing to learn in {names}: no conversation has an assistant's answer to something."
            )
    return open_rows(path, length)


def learnt_tokens(row: Words) -> int:
    """How many of a row are predicted: learnt, and not the first of a document."""
    return int(((row[1:] & (LEARNT | BEGINS)) == LEARNT).sum())


def first(rows: Iterator[Words], count: int) -> Iterator[Words]:
    for row, _ in zip(rows, range(count)):
        yield row
