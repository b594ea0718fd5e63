"""How likely a model finds one text after another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bitnet.engine import LLM, SamplingParams
from bitnet.engine.sequence import Sequence as Running
from bitnet.errors import ContextError, ParameterError
from bitnet.evaluate.requests import finished
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
    def of(
        cls, tokenizer: Tokenizer, context: str, text: str, add_bos: bool | None = None, parse_special: bool = False
    ) -> Continuation:
        """As lm-evaluation-harness cuts them: both are tokenised together, so that blanks go where the tokenizer has
        them; blanks at the context's end belong to the text.

        add_bos: put a begin-of-text token first; None: where the model wants one. parse_special: as `encode` has it.
        """
        whole = tokenizer.encode(context + text, False, parse_special)
        start = len(tokenizer.encode(context.rstrip(), False, parse_special))
        if (tokenizer.add_bos if add_bos is None else add_bos) or not start:
            before = first_token(tokenizer)
            if whole[:1] != [before]:
                whole, start = [before, *whole], start + 1
            start = max(start, 1)
        if start >= len(whole):
            raise ParameterError(f"There is no token to score in {text!r:.60}.")
        return cls(tuple(whole), start)

    def last(self, size: int) -> Continuation:
        """What `size` tokens hold of its end. Raises ContextError where that cuts into the text that is scored."""
        lost = max(0, len(self.ids) - size)
        if lost >= self.start:
            raise ContextError(f"A text to score has {len(self.ids) - self.start} tokens; the context holds {size}.")
        return Continuation(self.ids[lost:], self.start - lost)


def first_token(tokenizer: Tokenizer) -> int:
    """What comes before the first token of a text, where nothing else does."""
    before = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if before is None:
        raise ParameterError("The model has no token that a text could begin after; give a context.")
    return before


def likelihoods(
    llm: LLM, texts: Sequence[Continuation], progress: Progress = lambda done, total: None
) -> list[Likelihood]:
    """Of each text, in their order; as many at a time as the engine takes. Equal beginnings are read once.

    Raises ContextError where a text is longer than the context.
    """
    longest = max((len(each.ids) for each in texts), default=0)
    if longest > llm.ctx_size:
        raise ContextError(f"A text has {longest} tokens; the context holds {llm.ctx_size}.", "Raise --ctx-size.")
    found = []
    for each in scored(llm, texts):
        found.append(each)
        progress(len(found), len(texts))
    return found


def scored(llm: LLM, texts: Iterable[Continuation]) -> Iterator[Likelihood]:
    """The likelihood of each as it is known."""
    params = SamplingParams(max_tokens=0, logprobs=1)
    queued = (llm.add_request(text.ids, params, score_from=text.start - 1) for text in texts)
    for sequence, _ in finished(llm, queued):
        yield likelihood(sequence)


def likelihood(sequence: Running) -> Likelihood:
    scored = sequence.prompt_logprobs
    greedy = all(each.token in [token for token, logprob in each.top if logprob >= each.logprob] for each in scored)
    return Likelihood(sum(each.logprob for each in scored), len(scored), greedy)
