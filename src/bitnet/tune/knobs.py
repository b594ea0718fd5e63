"""What can be turned, and the values worth trying on this machine for this model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bitnet.backends.cpu import packings
from bitnet.backends.packing import BITS, WEIGHTS, nbytes
from bitnet.bench.speed import screen_bytes
from bitnet.models import Decoder
from bitnet.models.decoder import projection_shapes
from bitnet.models.memory import fits
from bitnet.tune.options import Options

CHUNKS = (64, 128, 256, 512)


@dataclass(frozen=True, slots=True)
class Knob:
    """values: those to try from given options on, each with the options that have it; the first is the present one."""

    name: str
    values: Callable[[Options], Mapping[Any, Options]]


def knobs(model: Decoder) -> list[Knob]:
    """In the order in which they are tried: what changes most comes first, for the others are measured on top of it."""
    screened, kept = screen_bytes(model) > 0, packings(model.weights.values())
    count = sum(n * k for n, k in projection_shapes(model.config).values()) * model.config.num_hidden_layers
    return [
        Knob("threads", threads),
        Knob("weights", lambda now: weights(now, kept, count)),
        Knob("head", lambda now: heads(now, screened)),
        Knob("chunk", chunks),
    ]


def threads(now: Options) -> dict[int, Options]:
    """One, doubling up to all allowed CPUs, and one fewer than the default: that leaves a core to everything else."""
    import bitnet._core as _core

    default, most = _core.default_threads(), len(_core.allowed_cpus())
    counts = {1 << i for i in range(most.bit_length())} | {default - 1, most}
    present = now.threads or default
    return {present: now} | {n: replace(now, threads=n) for n in sorted(counts - {present}) if 1 <= n <= most}


def weights(now: Options, kept: str, count: int) -> dict[str, Options]:
    """The other packings of `count` weights for which there is memory; none where the model mixes them."""
    present, taken = (kept if now.packing == "auto" else now.packing), 0
    values = {present: now}
    for name in BITS if present in BITS else ():
        if name not in values and fits(taken + nbytes(count, name)):
            taken += nbytes(count, name)
            chosen: dict[str, Any] = (
                {"weights": name, "kernel": "auto"} if name in WEIGHTS else {"weights": "auto", "kernel": name}
            )
            values[name] = replace(now, **chosen)
    return values


def heads(now: Options, screened: bool) -> dict[str, Options]:
    """Without the screen, where there is one."""
    present = "screen" if screened and now.head != "full" else "full"
    others = {"screen", "full"} - {present} if screened else ()
    return {present: now} | {head: replace(now, head=head) for head in others}


def chunks(now: Options) -> dict[int, Options]:
    return {now.chunk: now} | {size: replace(now, chunk=size) for size in CHUNKS if size != now.chunk}
