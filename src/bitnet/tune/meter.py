"""How fast a model reads and writes under given options, in samples short enough to take turns."""

from __future__ import annotations

import bitnet._core as _core
from bitnet import backends
from bitnet.backends.base import BLOCK_SIZE, Weight
from bitnet.backends.cpu import packings
from bitnet.backends.packing import GROUPED
from bitnet.bench.speed import Run, Test, logits_hash
from bitnet.engine.runner import Runner
from bitnet.errors import BitNetError
from bitnet.models import Decoder
from bitnet.tune.options import Options
from bitnet.tune.search import Speed

PROMPT, DECODE = (32, 512), (4, 64)  # tokens of a sample, at least and at most
SECONDS = 0.25  # that a sample should take


class ModelMeter:
    """One model under any options. Raises BitNetError where options change its logits, which they never must."""

    def __init__(self, model: Decoder, kv: str = "f16") -> None:
        self.kv, self._hash = kv, ""
        kept = packings(model.weights.values())
        self._models = {"auto": model, kept: model}  # by packing
        self._runners: dict[tuple[str, str], Runner] = {}
        self._longest = model.config.max_position_embeddings - 1
        self._prompt, self._decode = PROMPT[0], DECODE[0]
        self(Options())  # brings the weights into memory
        first = self(Options())
        self._prompt = tokens_for(first.prompt, *PROMPT)
        self._decode = tokens_for(first.decode, *DECODE)
        self._hash = ""  # of so many tokens

    def __call__(self, options: Options) -> Speed:
        backends.set_threads(options.threads)
        prompt, decode = Test(min(self._prompt, self._longest), 0), Test(0, min(self._decode, self._longest))
        return Speed(
            self._timed(options, prompt) / prompt.tokens,
            self._timed(options, decode) / decode.tokens,
        )

    def _timed(self, options: Options, test: Test) -> float:
        blocks = -(-(min(PROMPT[1], self._longest) + 1) // BLOCK_SIZE)
        key = options.packing, options.head
        runner = self._runners.get(key)
        if runner is None:
            runner = self._runners[key] = Runner(self._model(options.packing), blocks, self.kv, options.head)
            Run(runner, blocks, options.chunk).timed(test)  # the first time takes memory
        ns, logits = Run(runner, blocks, options.chunk).timed(test)
        if test.n_gen:
            self._compare(logits_hash(logits), options)
        return ns / 1e9

    def _model(self, packing: str) -> Decoder:
        if packing not in self._models:
            self._models[packing] = repacked(self._models["auto"], packing)
        return self._models[packing]

    def _compare(self, found: str, options: Options) -> None:
        self._hash = self._hash or found
        if found != self._hash:
            raise BitNetError(
                f"{options} changes the logits: {found} in place of {self._hash}.", "Run `bitnet doctor`."
            )


def repacked(model: Decoder, packing: str) -> Decoder:
    """The same model with its ternary weights kept in another way; all other weights are shared."""
    packed: dict[int, Weight] = {}  # by the weight that it replaces, for one may serve under two names
    for weight in model.weights.values():
        if isinstance(weight, _core.TernaryWeight) and (packing in GROUPED or not weight.group):
            packed[id(weight)] = _core.TernaryWeight(weight.codes(), weight.scales, packing)
    weights = {name: packed.get(id(weight), weight) for name, weight in model.weights.items()}
    return type(model)(model.config, weights, model.ops)


def tokens_for(seconds_each: float, least: int, most: int) -> int:
    """How many take about SECONDS."""
    return max(least, min(most, int(SECONDS / seconds_each)))
