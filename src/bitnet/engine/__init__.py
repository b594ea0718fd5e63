"""Continuous batching: requests become sequences, sequences share steps, steps become tokens."""

from bitnet.engine.draft import Drafter, PromptLookup
from bitnet.engine.draft_model import DraftModel, check_vocabularies
from bitnet.engine.embedder import Embedder
from bitnet.engine.llm import LLM, EngineConfig, Output
from bitnet.engine.sampling import SamplingParams, TokenLogprob
from bitnet.engine.sequence import Sequence

__all__ = [
    "LLM",
    "DraftModel",
    "Drafter",
    "Embedder",
    "EngineConfig",
    "Output",
    "PromptLookup",
    "SamplingParams",
    "Sequence",
    "TokenLogprob",
    "check_vocabularies",
]
