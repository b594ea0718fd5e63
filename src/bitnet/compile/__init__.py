"""A model as a shared library: everything that runs it, its weights and its tokenizer, for one target."""

from bitnet.compile.export import Options, compile_model

__all__ = ["Options", "compile_model"]
