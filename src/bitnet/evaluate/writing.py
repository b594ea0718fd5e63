"""How close what a model writes comes to what people wrote: BLEU and chrF, as sacrebleu counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import zip_longest
from typing import Any

from bitnet.engine import LLM, SamplingParams
from bitnet.errors import ParameterError
from bitnet.evaluate.questions import Passage
from bitnet.evaluate.requests import finished
from bitnet.models.load import Progress


@dataclass(frozen=True, slots=True)
class Closeness:
    """bleu, chrf: 0 to 100, of all passages together. Their signatures say how they were counted
    (arXiv:1804.08771). written: the model's text for each passage."""

    bleu: float
    bleu_signature: str
    chrf: float
    chrf_signature: str
    written: tuple[str, ...]


def closeness(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    passages: Sequence[Passage],
    params: SamplingParams,
    tokenize: str = "13a",
    progress: Progress = lambda done, total: None,
) -> Closeness:
    """prompts: the token ids of each passage's prompt. tokenize: how sacrebleu cuts words for BLEU."""
    written: list[str] = []
    for _, text in finished(llm, (llm.add_request(ids, params) for ids in prompts)):
        written.append(text.strip())
        progress(len(written), len(passages))
    return compared(written, passages, tokenize)


def compared(written: Sequence[str], passages: Sequence[Passage], tokenize: str = "13a") -> Closeness:
    """What sacrebleu makes of these texts."""
    bleu, chrf = metrics(tokenize)
    # A stream holds the first reference of each passage, the next the second; sacrebleu passes over None.
    streams = list(zip_longest(*(passage.references for passage in passages)))
    scores = [metric.corpus_score(list(written), list(map(list, streams))).score for metric in (bleu, chrf)]
    signatures = [str(metric.get_signature()) for metric in (bleu, chrf)]
    return Closeness(scores[0], signatures[0], scores[1], signatures[1], tuple(written))


def metrics(tokenize: str) -> tuple[Any, Any]:
    """sacrebleu's BLEU and chrF. Raises ParameterError where it is missing, or does not cut words in that way."""
    try:
        found = import_module("sacrebleu.metrics")
    except ImportError:
        raise ParameterError("BLEU and chrF need sacrebleu.", "Install it: pip install 'bitnet[eval]'") from None
    if tokenize not in found.BLEU.TOKENIZERS:
        raise ParameterError(f"--tokenize is {tokenize!r}.", f"Known: {', '.join(found.BLEU.TOKENIZERS)}.")
    try:
        return found.BLEU(tokenize=tokenize), found.CHRF()
    except (ImportError, RuntimeError) as error:  # some ways need a library of their own
        raise ParameterError(f"--tokenize {tokenize} cannot be had here: {str(error).strip()}") from error
