"""How likely a model finds one text after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bitnet.engine import LLM, SamplingParams
from bitnet.engine.sequence import Sequence as Running
from bitnet.errors import ContextError, ParameterError
from bitnet.models.load import Progress
from bitnet.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Likelihood:
    """logprob: natural, of the whole continuation. tokens: how many it has. greedy: whether each was the likeliest."""

    logprob: float
    tokens: int
    greedy: bool


@dataclass(frozen=True, slots=True)
class Continuation:
    """Token ids of a context and what follows it, from `start` on."""

    ids: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, context: str, text: str) -> Continuation:
        """As lm-evaluation-harness cuts them: both are tokenised together, so that blanks go where the tokenizer has
        them; blanks at the context's end belong to the text."""
        whole, start = tokenizer.encode(context + text, False), len(tokenizer.encode(context.rstrip(), False))
        if tokenizer.add_bos or not start:  # something must come before the first token
            before = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
            if before is None:
                raise ParameterError("The model has no token that a text could begin after; give a context.")
            whole, start = [before, *whole], start + 1
        if start >= len(whole):
            raise ParameterError(f"There is no token to score in {text!r:.60}.")
        return cls(tuple(whole), start)


def likelihoods(
    llm: LLM, texts: Sequence[Continuation], progress: Progress = lambda done, total: None
) -> list[Likelihood]:
    """Of each text, in their order; as many at a time as the engine takes. Equal beginnings are read once.

    Raises ContextError where a text is longer than the context.
    """
    longest = max((len(each.ids) for each in texts), default=0)
    if longest > llm.ctx_size:
        raise ContextError(f"A text has {longest} tokens; the context holds {llm.ctx_size}.", "Raise --ctx-size.")
    found: dict[int, Likelihood] = {}
    for index, sequence in finished(llm, enumerate(texts)):
        found[index] = likelihood(sequence)
        progress(len(found), len(texts))
    return [found[i] for i in range(len(texts))]


def finished(llm: LLM, texts: Iterable[tuple[int, Continuation]]) -> Iterator[tuple[int, Running]]:
    """Every sequence once its prompt is scored. Few wait at a time, so that a long list takes no memory."""
    running: deque[tuple[int, Running]] = deque()
    params = SamplingParams(max_tokens=0, logprobs=1)
    for index, text in texts:
        running.append((index, llm.add_request(text.ids, params, score_from=text.start - 1)))
        if len(running) >= 2 * llm.config.max_sequences:
            yield finish(llm, running)
    while running:
        yield finish(llm, running)


def finish(llm: LLM, running: deque[tuple[int, Running]]) -> tuple[int, Running]:
    """The oldest, once it is done; those behind it go on meanwhile."""
    index, sequence = running.popleft()
    for _ in llm.run([sequence]):
        pass
    return index, sequence


def likelihood(sequence: Running) -> Likelihood:
    scored = sequence.prompt_logprobs
    greedy = all(each.token in [token for token, logprob in each.top if logprob >= each.logprob] for each in scored)
    return Likelihood(sum(each.logprob for each in scored), len(scored), greedy)
