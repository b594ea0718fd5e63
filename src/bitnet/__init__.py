"""bitnet runs 1-bit and ternary (1.58-bit) language models.

from bitnet import BitNet
model = BitNet("model.gguf")  # or BitNet() for the built-in model
print(model.generate("The future of AI is", max_tokens=50))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet.api import BitNet
    from bitnet.engine import LLM, EngineConfig, SamplingParams
    from bitnet.errors import BitNetError

__version__ = "0.1.0"
__all__ = ["LLM", "BitNet", "BitNetError", "EngineConfig", "SamplingParams", "__version__"]

# Loaded when first asked for, so that `bitnet --help` need not wait for NumPy.
_HOMES = {
    "BitNet": "bitnet.api",
    "BitNetError": "bitnet.errors",
    "EngineConfig": "bitnet.engine",
    "LLM": "bitnet.engine",
    "SamplingParams": "bitnet.engine",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bitnet' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
