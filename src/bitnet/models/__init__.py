"""One file per architecture, each written once against the operations of backends/base.py."""

from bitnet.models.decoder import Config, Decoder
from bitnet.models.load import load, open_model

__all__ = ["Config", "Decoder", "load", "open_model"]
