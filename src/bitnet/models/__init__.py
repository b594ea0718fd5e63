"""One file per architecture, each written once against the operations of backends/base.py."""

from bitnet.models.decoder import Config, Decoder
from bitnet.models.load import HEADS, load, open_model

__all__ = ["HEADS", "Config", "Decoder", "load", "open_model"]
