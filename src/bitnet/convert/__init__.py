"""One model file into another."""

from bitnet.convert.conversion import Conversion, convert
from bitnet.convert.gguf import write_checkpoint

__all__ = ["Conversion", "convert", "write_checkpoint"]
