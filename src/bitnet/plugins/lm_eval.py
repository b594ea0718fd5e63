"""lm-evaluation-harness's model "bitnet": the engine in the harness's own process.

`lm_eval run --model bitnet --model_args pretrained=FILE --tasks ...` finds it by its entry point where the harness
looks for these, which releases up to 0.4.13 do not
(https://github.com/EleutherAI/lm-evaluation-harness/pull/4013);
`python -m bitnet.plugins.lm_eval run --model bitnet ...` takes the same arguments with any of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from bitnet.api import BitNet
from bitnet.engine import SamplingParams, Sequence
from bitnet.errors import ContextError, ParameterError
from bitnet.evaluate.likelihood import Continuation, Likelihood, first_token, scored
from bitnet.evaluate.requests import finished

LOG = logging.getLogger(__name__)
SEQUENCES = 32  # side by side, where the batch size is "auto"
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # one thing by many names
SAMPLING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # where a task samples and does not say how
UNUSED = ("until", "do_sample", "num_beams", *LENGTHS)


class BitNetLM(LM):
    """pretrained: a file, a folder or a name; "" for the built-in model; or a BitNet that is open.

    batch_size: texts side by side; it changes no score. add_bos_token: begin every text with it; None: where the
    model wants one. max_length: tokens of context, ctx_size by the harness's name. device: nothing; the harness always
    names one, and `backend` says where the model runs. The other arguments are those of BitNet. What does not fit into
    the context loses its beginning, as with the harness's other models.
    """

    def __init__(
        self,
        pretrained: str | Path | BitNet = "",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if not isinstance(pretrained, BitNet):
            sequences = max_batch_size or SEQUENCES if str(batch_size).startswith("auto") else int(batch_size)
            length = {} if max_length is None else {"ctx_size": max_length}
            defaults = {"max_sequences": sequences, "head": "full", **length}
            pretrained = BitNet(pretrained or None, **{**defaults, **options})
        self.model, self.max_gen_toks, self.add_bos_token = pretrained, max_gen_toks, add_bos_token
        self.max_length, self.batch_size = self.model.llm.ctx_size, self.model.llm.config.max_sequences
        self._stop: tuple[str, ...] = ()

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        texts = (self._continuation(*request.args) for request in requests)
        found: list[tuple[float, bool]] = []
        for request, each in zip(requests, self._scored(texts, len(requests), disable_tqdm), strict=True):
            found.append((each.logprob, each.greedy))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        windows = [list(self._windows(*request.args)) for request in requests]
        texts = [text for each in windows for text in each]
        scores = self._scored(texts, len(texts), disable_tqdm)
        found: list[float] = []
        for request, each in zip(requests, windows, strict=True):
            found.append(sum(next(scores).logprob for _ in each))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        queued = (self._started(*request.args) for request in requests)
        texts = (text for _, text in finished(self.model.llm, queued))
        found: list[str] = []
        for request, text in zip(requests, shown(texts, len(requests), "writing", disable_tqdm), strict=True):
            found.append(text)
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found

    @property
    def tokenizer_name(self) -> str:
        return str(self.model.path)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Called once, before any conversation is put into it."""
        if not chat_template:
            return None
        self._stop = self.model.chat_template.stop
        return self.model.chat_template.source

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self.model.chat_template.render(chat_history, self.model.tokenizer, add_generation_prompt)
        if add_generation_prompt:
            return text
        begun = chat_history[-1]["content"].strip()  # the model goes on with the last message: nothing closes it
        return text[: text.rindex(begun) + len(begun)]

    def get_model_info(self) -> dict[str, Any]:
        """For the harness's report."""
        return {"model_name": self.model.path.name, "max_length": self.max_length}

    def _continuation(self, context: str, text: str) -> Continuation:
        found = Continuation.of(self.model.tokenizer, context, text, self.add_bos_token, parse_special=True)
        count = len(found.ids)
        if count > self.max_length:
            LOG.warning("A text of %d tokens loses its beginning: the context holds %d.", count, self.max_length)
        return found.last(self.max_length)

    def _windows(self, text: str) -> Iterator[Continuation]:
        """The whole of a text, in pieces that each have a token of the one before for their context."""
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(text, False, parse_special=True)
        # The last token of a window is read too, so a window has one token less than the context.
        pairs = get_rolling_token_windows(ids, first_token(tokenizer), self.max_length - 1, context_len=1)
        for context, piece in map(make_disjoint_window, pairs):
            yield Continuation((*context, *piece), len(context))

    def _scored(self, texts: Iterable[Continuation], count: int, silent: bool) -> Iterator[Likelihood]:
        return shown(scored(self.model.llm, texts), count, "scoring", silent)

    def _started(self, context: str, asked: Mapping[str, Any]) -> Sequence:
        params = sampling(asked, self.max_gen_toks, self._stop)
        room = self.max_length - (params.max_tokens or 0)
        if room < 1:
            raise ContextError(
                f"A task wants {params.max_tokens} tokens; the context holds {self.max_length} with its question.",
                "Ask for fewer: --gen_kwargs max_gen_toks=N",
            )
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(context, False, parse_special=True)
        if not ids or (tokenizer.add_bos if self.add_bos_token is None else self.add_bos_token):
            before = first_token(tokenizer)
            ids = ids if ids[:1] == [before] else [before, *ids]
        if len(ids) > room:
            LOG.warning("A question of %d tokens loses its beginning: there is room for %d.", len(ids), room)
        return self.model.llm.add_request(ids[-room:], params)


def sampling(asked: Mapping[str, Any], max_gen_toks: int, stop: tuple[str, ...]) -> SamplingParams:
    """What a task's generation_kwargs say: greedily unless they ask for chance. Raises ParameterError for unknown
    ones, and for a beam search, which the engine has not."""
    if asked.get("num_beams", 1) != 1:
        raise ParameterError("The task asks for a beam search; the engine samples or takes the likeliest token.")
    until = asked.get("until") or []
    until = [until] if isinstance(until, str) else until
    temperature = float(asked.get("temperature") or 0.0)
    if asked.get("do_sample"):
        temperature = temperature or 1.0
    elif asked.get("do_sample") is False:
        temperature = 0.0
    length = next((int(asked[name]) for name in LENGTHS if asked.get(name) is not None), max_gen_toks)
    given = {name: value for name, value in asked.items() if name not in UNUSED and value is not None}
    unknown = given.keys() - SamplingParams.__dataclass_fields__.keys()
    if unknown:
        raise ParameterError(f"The task asks for {', '.join(sorted(unknown))}, which the engine does not know.")
    chosen = {**SAMPLING, **given, "temperature": temperature, "max_tokens": length}
    return SamplingParams(**chosen, stop=(*(each for each in until if each), *stop))


def shown(found: Iterable[Any], count: int, doing: str, silent: bool) -> Iterator[Any]:
    return iter(tqdm(found, total=count, desc=doing, disable=silent))


def evaluate(
    model: BitNet,
    tasks: list[str],
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> Any:
    """The harness's results of these tasks. Raises ParameterError where it knows no such task."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise ParameterError(
            f"lm-eval {lm_eval.__version__} has no task {', '.join(unknown)}.", "It lists them: lm_eval ls tasks"
        )
    return lm_eval.simple_evaluate(
        BitNetLM(model),
        tasks=tasks,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        task_manager=manager,
    )


def main() -> None:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    register_model("bitnet")(BitNetLM)
    cli_evaluate()


if __name__ == "__main__":
    main()
