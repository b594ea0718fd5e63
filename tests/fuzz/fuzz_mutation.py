"""Damages model files as a byte mutator hardly can: one part is changed, and the lengths around it stay right."""

from __future__ import annotations

import itertools
import json
import random
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fuzz_corpus import FOLDER, SEPARATOR

WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
TYPES = [*range(44), 134, 135, 142, 143, 200, 335, 2**32 - 1]
WORDS = [
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    33,
    255,
    256,
    1000,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
TEXTS = [
    "",
    "a",
    " ",
    "a b",
    "gpt2",
    "llama",
    "default",
    "\0",
    "\ud800",
    "é",
    "[PAD3]",
    "<0x41>",
    "▁",
    "a" * 3000,
    "\x1b[2J\r\n",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    16,
    10**6,
    2**31,
    2**53,
    2**64,
    0.5,
    1e-400,
    1e308,
    [],
    {},
    [[]],
    *TEXTS,
]


@dataclass
class GGUFParts:
    """A GGUF file taken apart: pairs of (key, type, payload), tensors of [name, dims, type, offset], data."""

    version: int
    pairs: list[tuple[bytes, int, bytes]]
    infos: list[tuple[bytes, list[int], int, int]]
    data: bytes

    @classmethod
    def of(cls, whole: bytes) -> GGUFParts:
        """Raises struct.error or ValueError where the header does not hold together."""
        version, tensors, pairs = struct.unpack_from("<IQQ", whole, 4)
        at = 24
        found = cls(version, [], [], b"")
        for _ in range(pairs):
            key, at = _string(whole, at)
            (kind,) = struct.unpack_from("<I", whole, at)
            end = _end(whole, at + 4, kind)
            found.pairs.append((key, kind, whole[at + 4 : end]))
            at = end
        for _ in range(tensors):
            name, at = _string(whole, at)
            (count,) = struct.unpack_from("<I", whole, at)
            if count > 8:
                raise ValueError
            dims = list(struct.unpack_from(f"<{count}Q", whole, at + 4))
            kind, offset = struct.unpack_from("<IQ", whole, at + 4 + 8 * count)
            found.infos.append((name, dims, kind, offset))
            at += 16 + 8 * count
        found.data = whole[-(-at // 32) * 32 :]
        return found

    def whole(self) -> bytes:
        parts = [b"GGUF", struct.pack("<IQQ", self.version, len(self.infos), len(self.pairs))]
        for key, kind, payload in self.pairs:
            parts += [struct.pack("<Q", len(key)), key, struct.pack("<I", kind), payload]
        for name, dims, kind, offset in self.infos:
            parts += [struct.pack("<Q", len(name)), name, struct.pack(f"<I{len(dims)}Q", len(dims), *dims)]
            parts.append(struct.pack("<IQ", kind, offset))
        header = b"".join(parts)
        return header + bytes(-len(header) % 32) + self.data


def _string(whole: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", whole, at)
    if at + 8 + length > len(whole):
        raise ValueError
    return whole[at + 8 : at + 8 + length], at + 8 + length


def _end(whole: bytes, at: int, kind: int) -> int:
    """Where a value of this type ends."""
    if kind == STRING:
        return _string(whole, at)[1]
    if kind != ARRAY:
        return at + WIDTHS[kind]
    inner, count = struct.unpack_from("<IQ", whole, at)
    at += 12
    if inner != STRING:
        return at + count * WIDTHS[inner]
    for _ in range(count):
        at = _string(whole, at)[1]
    return at


def mutate(data: bytes, most: int, rng: random.Random) -> bytes:
    """`data` with a few damages, at most `most` bytes long."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with suppress(struct.error, ValueError, KeyError, IndexError, OverflowError, RecursionError):
            data = _gguf(data, rng) if data[:4] == b"GGUF" else _folder(data, rng)
    return data[:most]


def _gguf(whole: bytes, rng: random.Random) -> bytes:
    parts = GGUFParts.of(whole)
    match rng.randrange(9):
        case 0 | 1:
            _change_pair(parts, rng)
        case 2 | 3 | 4:
            _change_info(parts, rng)
        case 5:
            _shuffle(parts.pairs, rng)
        case 6:
            _shuffle(parts.infos, rng)
        case 7:
            parts.data = _bytes(parts.data, rng)
        case 8:
            parts.version = rng.choice(WORDS) % 2**32
    return parts.whole()


def _change_pair(parts: GGUFParts, rng: random.Random) -> None:
    at = rng.randrange(len(parts.pairs))
    key, kind, payload = parts.pairs[at]
    if rng.randrange(8) == 0:
        parts.pairs[at] = (_text(rng), kind, payload)
    elif kind == STRING:
        text = _bytes(payload[8:], rng) if rng.randrange(2) else _text(rng)
        parts.pairs[at] = (key, kind, struct.pack("<Q", len(text)) + text)
    elif kind == ARRAY:
        parts.pairs[at] = (key, kind, _array(payload, rng))
    elif rng.randrange(2):
        parts.pairs[at] = (key, kind, rng.choice(WORDS).to_bytes(8, "little")[: WIDTHS[kind]])
    else:
        kind = rng.choice(list(WIDTHS))
        parts.pairs[at] = (key, kind, rng.choice(WORDS).to_bytes(8, "little")[: WIDTHS[kind]])


def _array(payload: bytes, rng: random.Random) -> bytes:
    """An array with an element changed, dropped or doubled."""
    kind, count = struct.unpack_from("<IQ", payload)
    ends = [12]
    for _ in range(min(count, 5000)):
        ends.append(_end(payload, ends[-1], kind))
    items = [payload[a:b] for a, b in itertools.pairwise(ends)]
    at = rng.randrange(len(items))
    match rng.randrange(4):
        case 0:
            _shuffle(items, rng)
        case 1 if kind == STRING:
            text = _text(rng)
            items[at] = struct.pack("<Q", len(text)) + text
        case 2 if kind == STRING:
            text = _bytes(items[at][8:], rng)
            items[at] = struct.pack("<Q", len(text)) + text
        case _ if kind != STRING:
            items[at] = rng.choice(WORDS).to_bytes(8, "little")[: WIDTHS[kind]]
    return struct.pack("<IQ", kind, len(items)) + b"".join(items)


def _change_info(parts: GGUFParts, rng: random.Random) -> None:
    at = rng.randrange(len(parts.infos))
    name, dims, kind, offset = parts.infos[at]
    match rng.randrange(7):
        case 0:
            name = _text(rng)
        case 1:
            dims[rng.randrange(len(dims))] = rng.choice(WORDS)
        case 2:
            dims[rng.randrange(len(dims))] += rng.choice((-1, 1, 64, 256))
        case 3:
            dims = dims[::-1] if rng.randrange(2) else [*dims, rng.choice(WORDS)][-4:]
        case 4 | 5:
            kind = rng.choice(TYPES)
        case 6:
            offset = rng.choice((*WORDS, offset + 32, offset + 1, max(0, offset - 32)))
    parts.infos[at] = (name, [d % 2**64 for d in dims], kind, offset % 2**64)


def _folder(whole: bytes, rng: random.Random) -> bytes:
    files = (whole.split(SEPARATOR, len(FOLDER) - 1) + [b""] * len(FOLDER))[: len(FOLDER)]
    at = rng.choice([i for i, file in enumerate(files) if file] or [0])
    if FOLDER[at].endswith(".json"):
        files[at] = _json(files[at], rng)
    else:
        length = int.from_bytes(files[at][:8], "little")
        header, data = files[at][8 : 8 + length], files[at][8 + length :]
        if rng.randrange(5):
            header = _json(header, rng)
        else:
            data = _bytes(data, rng)
        files[at] = len(header).to_bytes(8, "little") + header + data
    return SEPARATOR.join(files)


def _json(text: bytes, rng: random.Random) -> bytes:
    """JSON with one value somewhere changed, dropped, doubled or renamed."""
    root = json.loads(text)
    places = [(root, key) for key in _keys(root)]
    for _ in range(rng.randrange(12)):  # walk down a random path, and look at all that is on the way
        inner = places[rng.randrange(len(places))]
        value = inner[0][inner[1]]
        places = [(value, key) for key in _keys(value)] or places
    holder, key = rng.choice(places)
    match rng.randrange(5):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), holder[key])
        case 1 | 2 if isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder[key]
        case 3 if isinstance(holder[key], int) and not isinstance(holder[key], bool):
            holder[key] += rng.choice((-1, 1, 2, 8, 1000))
        case _:
            holder[key] = rng.choice(VALUES)
    return json.dumps(root, ensure_ascii=rng.randrange(2) == 0).encode("utf-8", "surrogatepass")


def _keys(value: Any) -> list[Any]:
    return list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []


def _shuffle(items: list[Any], rng: random.Random) -> None:
    at = rng.randrange(len(items))
    match rng.randrange(3):
        case 0:
            del items[at]
        case 1:
            items.insert(rng.randrange(len(items) + 1), items[at])
        case 2:
            other = rng.randrange(len(items))
            items[at], items[other] = items[other], items[at]


def _text(rng: random.Random) -> bytes:
    return rng.choice(TEXTS).encode("utf-8", "surrogatepass")


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """One byte, or a few in a row, changed, dropped or doubled."""
    if not data:
        return bytes([rng.randrange(256)])
    at, count = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 8, 40))
    match rng.randrange(4):
        case 0:
            return data[:at] + bytes([rng.choice((0, 1, 0x7C, 0x7F, 0x80, 0xFF))]) * count + data[at + count :]
        case 1:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 2:
            return data[:at] + data[at + count :]
    return data[:at] + data[at : at + count] + data[at:]
