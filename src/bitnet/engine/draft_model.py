"""Guesses from a second, smaller model with the same vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from bitnet.engine.kv_cache import BlockPool
from bitnet.engine.llm import EngineConfig
from bitnet.engine.runner import Runner
from bitnet.engine.sampling import SamplingParams
from bitnet.engine.scheduler import Chunk
from bitnet.engine.sequence import Sequence
from bitnet.errors import ParameterError
from bitnet.models import Decoder
from bitnet.tokenizer import Tokenizer

GREEDY = SamplingParams(temperature=0)


class DraftModel:
    """What the model finds likeliest, token by token, for all sequences at once.

    It keeps a twin of each sequence: the context as far as it is known is the twin's prompt, the guesses its output,
    and its keys and values stay in the cache as far as the guesses were right. vocab_size: of the other model.
    """

    pays = 0.5

    def __init__(self, model: Decoder, config: EngineConfig, vocab_size: int) -> None:
        self.ctx_size, blocks = config.sizes(model.config.max_position_embeddings)
        self.chunk, self.vocab_size = max(config.chunk, config.max_sequences), vocab_size
        self.runner, self.pool = Runner(model, blocks, config.kv, config.head), BlockPool(blocks)
        self._twins: dict[Sequence, Sequence] = {}

    def propose(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """In one run for each guess; a context that takes more than `chunk` tokens to read gets none for now."""
        twins = {self._follow(sequence): count for sequence, count in wanted.items()}
        active = list(twins)
        while chunks := self._chunks(active, twins):
            active = []
            for chunk, logits in zip(chunks, self.runner.run(chunks), strict=True):
                twin = chunk.sequence
                unfinished = not chunk.complete
                twin.computed = chunk.end
                if unfinished:
                    continue
                twin.output.append(int(np.asarray(logits[-1])[: self.vocab_size].argmax()))
                if len(twin.output) < twins[twin]:
                    active.append(twin)
        return {sequence: list(self._twins[sequence].output) for sequence in wanted}

    def forget(self, sequence: Sequence) -> None:
        twin = self._twins.pop(sequence, None)
        if twin is not None:
            self.pool.release(twin)

    def _follow(self, sequence: Sequence) -> Sequence:
        """The sequence's twin, brought to its context; what was computed of wrong guesses is forgotten."""
        twin = self._twins.setdefault(sequence, Sequence(sequence.id, [], GREEDY))
        last = self.runner.model.config.vocab_size - 1  # whatever is padded beyond it in the other model
        news = [min(token, last) for token in sequence.tokens(len(twin.prompt), len(sequence))]
        right = next((i for i, pair in enumerate(zip(twin.output, news)) if pair[0] != pair[1]), len(twin.output))
        twin.computed = min(twin.computed, len(twin.prompt) + right, len(sequence) - 1)
        twin.prompt += news
        twin.output.clear()
        return twin

    def _chunks(self, active: list[Sequence], busy: Collection[Sequence]) -> list[Chunk]:
        """What of the active ones can be computed in one step."""
        chunks, budget = [], self.chunk
        for twin in active:
            end = min(len(twin), twin.computed + budget)
            if twin.computed < end <= self.ctx_size and self._make_room(twin, end, busy):
                chunks.append(Chunk(twin, twin.computed, end))
                budget -= end - twin.computed
        return chunks

    def _make_room(self, twin: Sequence, length: int, busy: Collection[Sequence]) -> bool:
        """Blocks for the twin, if need be those of twins that nobody has asked for."""
        if self.pool.grow(twin, length):
            return True
        for sequence in [each for each, idle in self._twins.items() if idle not in busy]:
            self.forget(sequence)
        return self.pool.grow(twin, length)


def check_vocabularies(name: str, draft: Tokenizer, main: Tokenizer) -> None:
    """ParameterError where the tokens of a draft model are not those of the model it drafts for."""
    if list(draft.vocabulary.tokens) != list(main.vocabulary.tokens):
        raise ParameterError(
            f"{name} has another vocabulary ({draft.vocab_size} tokens) than the model it drafts for "
            f"({main.vocab_size}).",
            "Take a smaller model of the same family.",
        )
