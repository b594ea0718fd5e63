"""What must hold for any bytes that are offered as a model: all of it is read, or a ModelError says why not."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from fuzz_corpus import FOLDER, SEPARATOR

from bitnet import backends, formats, models
from bitnet.backends.base import Ops, Step
from bitnet.errors import ModelError
from bitnet.formats import Checkpoint
from bitnet.models.load import resolve
from bitnet.models.pooling import read_pooling
from bitnet.quant.blocks import BLOCKS
from bitnet.quant.tensor import TernaryTensor
from bitnet.tokenizer import Tokenizer

TEXT = "The café: 12 <|eot_id|>\n\x00😀"
LONGEST = 4000  # characters of an error


class Oracle:
    """Keeps a folder to write the cases to, and a backend to load them on."""

    def __init__(self) -> None:
        self._home = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self._file, self._folder = Path(self._home.name) / "m.gguf", Path(self._home.name) / "folder"
        self._ops = backends.make("cpu", "2bit")
        self._folder.mkdir()

    def check(self, data: bytes) -> list[str]:
        """Read the case; the errors that it was refused with. Raises whatever is not a ModelError."""
        path = self._written(data)
        errors: list[str] = []
        try:
            with formats.open(path) as checkpoint:
                for part in (read_tensors, take_tensors, read_tokenizer, load):
                    try:
                        part(checkpoint, self._ops)
                    except ModelError as error:
                        errors.append(checked(error))
        except ModelError as error:
            errors.append(checked(error))
        return errors

    def close(self) -> None:
        self._home.cleanup()

    def _written(self, data: bytes) -> Path:
        if data[:4] == b"GGUF":
            self._file.write_bytes(data)
            return self._file
        files = data.split(SEPARATOR, len(FOLDER) - 1)
        for name, content in zip(FOLDER, files + [b""] * len(FOLDER), strict=False):
            if content:
                (self._folder / name).write_bytes(content)
            else:
                (self._folder / name).unlink(missing_ok=True)
        if not any((self._folder / name).exists() for name in FOLDER[4:]):  # a folder without weights says only that
            (self._folder / FOLDER[4]).write_bytes(b"\2\0\0\0\0\0\0\0{}")
        return self._folder


def checked(error: ModelError) -> str:
    """The text of an error, which is short and can be printed without harm."""
    text = str(error)
    assert len(text) < LONGEST, f"{len(text)} characters"
    text.encode()
    assert text.replace("\n", "").isprintable(), repr(text)
    return text


def read_tensors(checkpoint: Checkpoint, ops: Ops) -> None:
    """Every tensor is refused or sound, and its rows are those of the whole."""
    refused = None
    for name, info in checkpoint.tensors().items():
        try:
            tensor = checkpoint.read(name)
        except ModelError as error:
            checked(error)
            refused = error
            continue
        assert tensor.shape == info.shape
        if isinstance(tensor, TernaryTensor):
            assert not tensor.codes.size or np.abs(tensor.codes).max() <= 1
            assert np.isfinite(tensor.scales).all()
        elif tensor.dtype in BLOCKS:
            assert np.isfinite(tensor.dequantize()).all()
        if len(info.shape) == 2 and info.shape[0]:
            step = min(checkpoint.row_step(name), info.shape[0])
            rows = checkpoint.read_rows(name, slice(0, step)).dequantize()
            assert np.array_equal(rows, tensor.dequantize()[:step], equal_nan=True)
    if refused is not None:
        raise refused


def take_tensors(checkpoint: Checkpoint, ops: Ops) -> None:
    """The core packs matrices straight from the file, or leaves them."""
    for name in checkpoint.tensors():
        stored = checkpoint.stored(name)
        if stored is not None:
            ops.put_stored(stored)


def read_tokenizer(checkpoint: Checkpoint, ops: Ops) -> None:
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    ids = tokenizer.encode(TEXT, parse_special=True) + tokenizer.encode(TEXT)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    tokenizer.decode(ids)


def load(checkpoint: Checkpoint, ops: Ops) -> None:
    """The whole model, and a step of it."""
    read_pooling(checkpoint)
    _, config, shapes = models.open_model(checkpoint)
    resolve(checkpoint, shapes)
    model = models.load(checkpoint, ops, force=True)
    cache = ops.new_cache(config.num_hidden_layers, 1, config.num_key_value_heads, config.head_dim, "f16")
    with np.errstate(all="ignore"):
        model(Step.whole([0, config.vocab_size - 1]), cache)
