"""Bytes on disk <-> named tensors.

`open` finds out what a path holds and returns a Checkpoint whose tensors are read when asked for; `write_gguf` is the
way back. Nothing here knows what a tensor is for: names are the file's, and models/ translates them.
"""

from bitnet.formats.checkpoint import Checkpoint, TensorInfo
from bitnet.formats.gguf_writer import TensorSpec, write_gguf
from bitnet.formats.opening import open

__all__ = ["Checkpoint", "TensorInfo", "TensorSpec", "open", "write_gguf"]
