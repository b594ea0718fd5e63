"""GGUF and safetensors files built from bare bytes, so that they can also be wrong."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet.quant.tensor import TernaryTensor

U32, STRING, ARRAY = 4, 8, 9


@dataclass
class GGUFBytes:
    """The parts of a GGUF file as bytes; `whole()` joins them. Every count can be overridden with a lie."""

    version: int = 3
    pairs: list[bytes] = field(default_factory=lambda: [GGUFBytes.text("general.architecture", "bitnet-b1.58")])
    infos: list[bytes] = field(default_factory=list)
    data: bytes = b""
    tensor_count: int | None = None
    pair_count: int | None = None
    magic: bytes = b"GGUF"

    @staticmethod
    def string(text: bytes | str, length: int | None = None) -> bytes:
        data = text if isinstance(text, bytes) else text.encode()
        return struct.pack("<Q", len(data) if length is None else length) + data

    @classmethod
    def pair(cls, key: bytes | str, kind: int, payload: bytes) -> bytes:
        return cls.string(key) + struct.pack("<I", kind) + payload

    @classmethod
    def text(cls, key: bytes | str, value: bytes | str) -> bytes:
        return cls.pair(key, STRING, cls.string(value))

    @classmethod
    def array(cls, key: str, kind: int, count: int, payload: bytes = b"") -> bytes:
        return cls.pair(key, ARRAY, struct.pack("<IQ", kind, count) + payload)

    @classmethod
    def info(cls, name: bytes | str, dims: tuple[int, ...], kind: int, offset: int, n_dims: int | None = None) -> bytes:
        """dims as the file has them: innermost first."""
        count = len(dims) if n_dims is None else n_dims
        return cls.string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)

    def header(self) -> bytes:
        tensors = len(self.infos) if self.tensor_count is None else self.tensor_count
        pairs = len(self.pairs) if self.pair_count is None else self.pair_count
        return self.magic + struct.pack("<IQQ", self.version, tensors, pairs) + b"".join(self.pairs + self.infos)

    def whole(self) -> bytes:
        header = self.header()
        return header + bytes(-len(header) % 32) + self.data


@pytest.fixture(scope="session")
def gguf_bytes() -> type[GGUFBytes]:
    return GGUFBytes


def _safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.fixture(scope="session")
def safetensors_bytes() -> Any:
    return _safetensors


@pytest.fixture
def save(tmp_path: Path) -> Any:
    def write(data: bytes, name: str = "model.gguf") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.fixture
def ternary() -> Any:
    """ternary(n, k, scales) with random codes."""

    def make(n: int, k: int, scales: Any = 0.5, seed: int = 0) -> TernaryTensor:
        codes = np.random.default_rng(seed).integers(-1, 2, (n, k)).astype(np.int8)
        return TernaryTensor(codes, np.asarray(scales, np.float32))

    return make
