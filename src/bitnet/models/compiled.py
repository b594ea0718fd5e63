"""A model that was compiled: sizes, and a library that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import NoReturn

from bitnet.backends.base import Cache, Step, Value, Weights
from bitnet.errors import FormatError, ParameterError, UnsupportedError
from bitnet.formats.compiled import CompiledFile
from bitnet.models.decoder import Config, Decoder

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",  # at most so many as the library was compiled for
)

HELD = ("head_nbytes", "screen_nbytes", "other_nbytes")


@dataclass(frozen=True, slots=True)
class Held:
    """Weights inside the library, by their bytes. screen_nbytes: of an output head; 0: it computes all logits."""

    nbytes: int
    screen_nbytes: int = 0


class CompiledModel(Decoder):
    """What `ops.compile` runs. Its operations are not there one by one."""

    def hidden(self, step: Step, cache: Cache) -> Value:
        self._refuse()

    def self_attn(self, x: Value, w: Weights, layer: int, step: Step, cache: Cache) -> Value:
        self._refuse()

    def mlp(self, x: Value, w: Weights) -> Value:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedError("A compiled model gives logits, and nothing else.", "Use the file it was made from.")


def load_compiled(checkpoint: CompiledFile) -> CompiledModel:
    """ParameterError where TVM is not installed; UnsupportedError where this machine cannot run it."""
    sizes = {name: checkpoint.manifest["model"].get(name) for name in SIZES}
    if not all(isinstance(size, int) and size > 0 for size in sizes.values()):
        raise FormatError(f"The manifest of {checkpoint.path} lacks sizes of the model.", "Compile it again.")
    try:
        library = import_module("bitnet.backends.compiled").Library(checkpoint.path, checkpoint.manifest)
    except ImportError as error:
        raise ParameterError(f"{checkpoint.path} needs {error.name}.", "pip install 'bitnet[tvm]'") from error
    head, screen, others = (int(checkpoint.manifest["model"].get(name, 0)) for name in HELD)
    held = Held(head, screen)
    return CompiledModel(Config(**sizes), {"embed_tokens": held, "lm_head": held, "others": Held(others)}, library)
