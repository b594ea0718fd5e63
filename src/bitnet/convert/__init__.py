"""One model file into another."""

from bitnet.convert.gguf import write_checkpoint

__all__ = ["write_checkpoint"]
