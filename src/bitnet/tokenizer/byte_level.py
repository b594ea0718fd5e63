"""The alphabet of byte-level BPE: every byte written as one printable character (GPT-2's `bytes_to_unicode`)."""

from __future__ import annotations


def _byte_to_char() -> dict[int, str]:
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_TO_CHAR = _byte_to_char()
_CHAR_TO_BYTE = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def to_bytes(token: str) -> bytes:
    """The bytes a token stands for. One that is not written in the alphabet stands for itself."""
    try:
        return bytes([_CHAR_TO_BYTE[char] for char in token])
    except KeyError:
        return token.encode()


def to_text(data: bytes) -> str:
    """The bytes written in the alphabet."""
    return "".join([BYTE_TO_CHAR[byte] for byte in data])
