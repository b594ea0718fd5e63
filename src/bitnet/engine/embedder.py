"""From texts to vectors: the states of a model, pooled."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import NDArray

from bitnet.backends.base import BLOCK_SIZE
from bitnet.engine.kv_cache import BlockPool
from bitnet.engine.runner import make_step, wanted_rows
from bitnet.engine.sampling import SamplingParams
from bitnet.engine.scheduler import Scheduler
from bitnet.engine.sequence import NEVER, Sequence
from bitnet.errors import BitNetError, ContextError, ParameterError
from bitnet.models import Decoder
from bitnet.models.pooling import check_pooling

Vectors = NDArray[np.float32]
NOTHING = SamplingParams(max_tokens=0, temperature=0)


class Embedder:
    """Embeds many prompts at once. A prompt's vector does not depend on what is embedded beside it.

    ctx_size: the longest prompt. max_sequences, chunk, kv: as in EngineConfig. Several threads may call: they take
    turns.
    """

    def __init__(self, model: Decoder, ctx_size: int, max_sequences: int, chunk: int, kv: str) -> None:
        c = model.config
        self.model, self.ctx_size = model, ctx_size
        self.max_sequences, self.chunk = max_sequences, chunk
        self.blocks = max_sequences * -(-ctx_size // BLOCK_SIZE)
        self.cache = model.ops.new_cache(c.num_hidden_layers, self.blocks, c.num_key_value_heads, c.head_dim, kv)
        self._busy = threading.Lock()

    def embed(self, prompts: Items[Items[int]], pooling: str, normalize: bool = True) -> Vectors:
        """Prompts of token ids to vectors (prompts, hidden).

        pooling: "last" takes the state of the last token, "cls" of the first, "mean" their mean. normalize: to length
        1.
        """
        check_pooling(pooling)
        for prompt in prompts:
            check_prompt(prompt, self.ctx_size, self.model.config.vocab_size)
        vectors = np.zeros((len(prompts), self.model.config.hidden_size), np.float64)
        sequences = [
            Sequence(i, list(ids), NOTHING, score_from=NEVER if pooling == "last" else 0)
            for i, ids in enumerate(prompts)
        ]
        with self._busy:
            self._run(sequences, vectors, pooling)
        if not np.isfinite(vectors).all():
            raise BitNetError("The model computed states that are not numbers.", "The model file is probably damaged.")
        if pooling == "mean":
            vectors /= [[max(1, len(prompt))] for prompt in prompts]
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors.astype(np.float32)

    def _run(self, sequences: list[Sequence], vectors: NDArray[np.float64], pooling: str) -> None:
        """Adds up the states that count for each sequence in its row of `vectors`."""
        scheduler = Scheduler(BlockPool(self.blocks), self.max_sequences, self.chunk)
        for sequence in sequences:
            scheduler.add(sequence)
        while chunks := scheduler.schedule():
            states = self.model.ops.to_host(self.model.hidden(make_step(chunks), self.cache))
            end = 0
            for chunk in chunks:
                begin, end = end, end + len(wanted_rows(chunk))
                counted = states[begin:end]
                if pooling == "cls":
                    counted = counted[: 1 if chunk.start == 0 else 0]
                vectors[chunk.sequence.id] += counted.sum(axis=0, dtype=np.float64)
                chunk.sequence.computed = chunk.end
                if chunk.end == len(chunk.sequence):
                    scheduler.finish(chunk.sequence, "length")


def check_prompt(prompt: Items[int], ctx_size: int, vocab_size: int) -> None:
    if not prompt:
        raise ParameterError("A text without tokens has no embedding.")
    if len(prompt) > ctx_size:
        raise ContextError(
            f"The text has {len(prompt)} tokens; the context holds {ctx_size}.", "Shorten it or raise --ctx-size."
        )
    if not all(0 <= token < vocab_size for token in prompt):
        raise ParameterError(f"The text has a token id outside 0 to {vocab_size - 1}.")
