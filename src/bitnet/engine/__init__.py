"""Continuous batching: requests become sequences, sequences share steps, steps become tokens."""

from bitnet.engine.embedder import Embedder
from bitnet.engine.llm import LLM, EngineConfig, Output
from bitnet.engine.sampling import SamplingParams, TokenLogprob
from bitnet.engine.sequence import Sequence

__all__ = ["LLM", "Embedder", "EngineConfig", "Output", "SamplingParams", "Sequence", "TokenLogprob"]
