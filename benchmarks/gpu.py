"""Measures the GPU backend: make bench-gpu, or python benchmarks/gpu.py --out gpu.json

First whether the card computes what the CPU does (gpu_check.py): where it does not, nothing is timed. Then limits of
the card, kernels, a model with random weights (decode, batches, prompts), and torch and transformers beside it where
they are installed. Every section has its own cap; the whole stays under ten minutes. A section that fails says so, and
the others go on. Beside the JSON goes the same as Markdown, for docs/gpu.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

import gpu_check
import gpu_peers
from gpu_tables import markdown

from bitnet import models
from bitnet.backends.base import BLOCK_SIZE, Step
from bitnet.backends.cuda import CUDA, tiles
from bitnet.backends.cuda.device import Array, Device
from bitnet.backends.cuda.weights import TernaryMatrix
from bitnet.engine import SamplingParams
from bitnet.engine.sampling import sample
from bitnet.errors import BitNetError
from bitnet.models import Decoder
from bitnet.models.decoder import projection_shapes
from bitnet.models.synthetic import SyntheticCheckpoint
from bitnet.quant.random import RandomTernary
from bitnet.quant.tensor import Tensor

GB = 1e9
# int8 operations of a multiprocessor's matrix units in a cycle, dense, by compute capability (NVIDIA's whitepapers; of
# others as of 8.6).
INT8 = {75: 2048, 80: 4096, 86: 2048, 89: 2048, 90: 8192, 100: 16384, 120: 2048}
PACKAGES = ("numpy", "triton", "cuda-bindings", "nvidia-cuda-nvrtc", "torch", "transformers")
# Every way to lay four codes of {0, 1, 2} into a byte.
BYTES = np.array([a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)])


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    model: str = "2B-4T"
    check: gpu_check.Extent | None = None  # None: all of it, on the model's shapes
    sweep: tuple[int, ...] = (1, 2, 4, 8, 16, 64, 256, 2048)
    contexts: tuple[int, ...] = (64, 512, 2048)
    batches: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128, 256)
    prompts: tuple[int, ...] = (128, 512, 2048, 8192)
    copied: int = 1 << 30
    repeats: int = 30
    square: int = 8192
    patience: float = 1.0  # times the caps


@dataclass
class Section:
    """cap: seconds; what is over it is left out, and says so."""

    name: str
    cap: float
    results: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def each(self, items: Sequence[Any]) -> Iterator[Any]:
        for i, item in enumerate(items):
            if i and time.monotonic() - self.started > self.cap:
                self.results["left out"] = [str(each) for each in items[i:]]
                return
            yield item


class QuickOps(CUDA):
    """Random matrices made as they lie: what they are does not matter to the speed."""

    def put(self, tensor: Tensor) -> Any:
        if not isinstance(tensor, RandomTernary):
            return super().put(tensor)
        return random_matrix(self.device, *tensor.shape, tensor.seed, float(tensor.scales))


def random_matrix(device: Device, n: int, k: int, seed: int, scale: float = 1.0) -> TernaryMatrix:
    shape = (tiles.count(n, tiles.ROWS), tiles.count(k, tiles.COLUMNS), 16, tiles.COLUMNS)
    packed = BYTES.astype(np.uint8)[np.random.default_rng(seed).integers(0, 81, shape, np.uint8)]
    return TernaryMatrix((n, k), device.put(packed), device.put(np.full(n, scale, np.float32)), 0)


def environment(device: Device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": device.name,
        "compute capability": device.arch / 10,
        "multiprocessors": device.processors,
        "second cache, bytes": device.cache_bytes,
        "clock, MHz": device.clock / 1e6,
        "free memory, GB": device.free_bytes() / GB,
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def median(device: Device, work: Callable[[], object], repeats: int) -> float:
    work()
    return float(np.median([device.seconds(work) for _ in range(repeats)]))


def limits(section: Section, ops: CUDA, sizes: Sizes) -> None:
    """What the card does at best: copying, a launch, a product of bfloat16."""
    device, count = ops.device, sizes.copied // 4
    x, y = device.zeros((count,)), device.zeros((count,))
    seconds = median(device, lambda: ops.each("scale_values", y, x, 1.0), sizes.repeats)
    section.results["copy, GB/s"] = 2 * sizes.copied / seconds / GB
    small, nodes = device.zeros((256,)), 100

    def tiny() -> None:
        for _ in range(nodes):
            ops.each("scale_values", small, small, 1.0)

    replay = device.capture(tiny)
    section.results["launch in a graph, us"] = median(device, replay, sizes.repeats) / nodes * 1e6
    section.results["launch without, us"] = median(device, tiny, sizes.repeats) / nodes * 1e6
    section.results["int8 peak by the clock, TOP/s"] = (
        INT8.get(device.arch, 2048) * device.processors * device.clock / 1e12
    )
    for name, product in (("bf16", gpu_peers.bf16_product), ("int8", gpu_peers.int8_product)):
        section.results[f"torch's {name} product, TOP/s"] = attempt(lambda: product(sizes.square))  # noqa: B023


def attempt(work: Callable[[], Any]) -> Any:
    """What it gives, or why it gives nothing: peers may be missing, or fail in any way."""
    try:
        return work()
    except Exception as error:
        return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1][:200]


def shapes_of(model: str) -> list[tuple[str, int, int]]:
    """The four products of a layer: (name, outputs, inputs)."""
    _, config, _ = models.open_model(SyntheticCheckpoint(model))
    shape = projection_shapes(config)
    qkv = sum(shape[f"self_attn.{name}_proj"][0] for name in "qkv")
    names = {"o": "self_attn.o_proj", "down": "mlp.down_proj"}
    found = [("qkv", qkv, config.hidden_size), ("gate_up", 2 * config.intermediate_size, config.hidden_size)]
    return found + [(name, *shape[full]) for name, full in names.items()]


def kernels(section: Section, ops: CUDA, sizes: Sizes) -> None:
    """Each product in a graph, over as many matrices as do not fit into the second cache together."""
    device = ops.device
    for name, n, k in section.each(shapes_of(sizes.model)):
        copies = min(64, 2 * device.cache_bytes // (n * k // 4) + 2)
        weights = [random_matrix(device, n, k, seed) for seed in range(copies)]
        for rows in sizes.sweep:
            x = device.put(np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float32))

            def products(x: Array = x, weights: list[TernaryMatrix] = weights) -> None:
                for weight in weights:
                    ops.array(ops.linear(x, weight)[0])

            products()
            seconds = median(device, device.capture(products), sizes.repeats) / copies
            section.results[f"{name} {rows}"] = {
                "us": seconds * 1e6,
                "GB/s of weights": n * k / 4 / seconds / GB,
                "int8 TOP/s": 2 * rows * n * k / seconds / 1e12,
            }


def decode_step(batch: int, position: int, blocks: int, top: int = 1) -> Step:
    """A token of each of `batch` sequences that have `position` before it, `blocks` blocks each."""
    rows = np.arange(batch, dtype=np.int32)
    tables = rows[:, None] * blocks + np.arange(blocks, dtype=np.int32)
    starts = np.arange(batch + 1, dtype=np.int32)
    return Step(rows + 5, np.full(batch, position, np.int32), starts, rows, tables.astype(np.int32), top)


def next_tokens(
    run: Callable[[Step], Any], step: Step, params: SamplingParams, random: Any, on_card: bool
) -> list[int]:
    """What the engine does with a step: numbers to draw with, the model, tokens."""
    numbers = [random.random() for _ in step.want]
    draws = np.array([(params.temperature, params.top_p, params.min_p, number) for number in numbers])
    rows = zip(run(replace(step, draws=draws if on_card else None)), numbers, strict=True)
    return [row if isinstance(row, int) else sample(row, params, {}, {}, number) for row, number in rows]


def decoding(
    section: Section,
    model: Decoder,
    cases: Sequence[tuple[int, int]],
    sizes: Sizes,
    params: SamplingParams = SamplingParams(temperature=0),
    on_card: bool = True,
) -> None:
    """cases: sequences and context. What is in the cache does not matter to the speed: it is zeros. on_card: tokens
    are drawn there, or by the host from the likeliest logits."""
    ops, c, random = model.ops, model.config, np.random.default_rng(0)
    assert isinstance(ops, CUDA)
    for batch, context in section.each(cases):
        blocks = tiles.count(context, BLOCK_SIZE)
        cache = ops.new_cache(c.num_hidden_layers, batch * blocks, c.num_key_value_heads, c.head_dim, "f16")
        run, step = ops.compile(model, cache), decode_step(batch, context - 1, blocks, params.top)
        for _ in range(2):
            next_tokens(run, step, params, random, on_card)
        graph = next(iter(run._graphs.values()))  # type: ignore[attr-defined]
        assert graph._replay is not None
        device = median(ops.device, graph._replay, sizes.repeats)
        begun = time.perf_counter()
        for _ in range(sizes.repeats):
            next_tokens(run, step, params, random, on_card)
        whole = (time.perf_counter() - begun) / sizes.repeats
        read = model_bytes(model) + 2 * batch * context * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 2
        drawn = "" if params.temperature == 0 else f", drawn {'on the card' if on_card else 'by the host'}"
        section.results[f"batch {batch} context {context}{drawn}"] = {
            "tok/s on the device": batch / device,
            "tok/s with the host": batch / whole,
            "GB/s": read / device / GB,
        }


def sampled(section: Section, model: Decoder, sizes: Sizes) -> None:
    """The batch of the bar at a temperature."""
    case, params = (max(b for b in sizes.batches if b <= 64), sizes.contexts[1]), SamplingParams(temperature=0.7)
    for on_card in section.each((True, False)):
        decoding(section, model, [case], sizes, params, on_card)


def model_bytes(model: Decoder) -> int:
    """What a step reads of the weights; an embedding that is no head is read a row at a time."""
    tied = model.weights["lm_head"] is model.weights["embed_tokens"]
    kept = {id(w): w for name, w in model.weights.items() if tied or name != "embed_tokens"}
    return sum(getattr(weight, "nbytes", 0) for weight in kept.values())


def ternary_weights(model: Decoder) -> int:
    return sum(math.prod(w.shape) for w in model.weights.values() if isinstance(w, TernaryMatrix))


def prompts(section: Section, model: Decoder, sizes: Sizes) -> None:
    ops, c = model.ops, model.config
    assert isinstance(ops, CUDA)
    for length in section.each(sizes.prompts):
        blocks = tiles.count(length, BLOCK_SIZE)
        cache = ops.new_cache(c.num_hidden_layers, blocks, c.num_key_value_heads, c.head_dim, "f16")
        run = ops.compile(model, cache)
        chunk = min(length, 2048)

        def read(length: int = length, chunk: int = chunk, blocks: int = blocks, run: Any = run) -> None:
            for first in range(0, length, chunk):
                at = np.arange(first, min(first + chunk, length), dtype=np.int32)
                want = np.array([len(at) - 1], np.int32)
                starts, table = np.array([0, len(at)], np.int32), np.arange(blocks, dtype=np.int32)[None]
                run(Step(at % c.vocab_size, at, starts, want, table, 1))

        read()
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            read()
            times.append(time.perf_counter() - begun)
        seconds = float(np.median(times))
        section.results[f"{length} tokens"] = {
            "tok/s": length / seconds,
            "int8 TOP/s": 2 * length * ternary_weights(model) / seconds / 1e12,
        }


def peers(section: Section, sizes: Sizes) -> None:
    """At the context of the bar."""
    _, config, _ = models.open_model(SyntheticCheckpoint(sizes.model))
    for name in section.each(list(gpu_peers.PEERS)):
        speed = attempt(lambda: gpu_peers.PEERS[name](config, sizes.contexts[min(1, len(sizes.contexts) - 1)]))  # noqa: B023
        section.results[name] = {"tok/s": speed} if isinstance(speed, float) else speed
        if "torch" in sys.modules:
            attempt(sys.modules["torch"].cuda.empty_cache)


def check(device: Device, sizes: Sizes) -> dict[str, str]:
    print("Does the card compute what the CPU does?", flush=True)
    extent = sizes.check or gpu_check.Extent([(n, k) for _, n, k in shapes_of(sizes.model)])
    return gpu_check.check(device, extent, lambda line: print(line, flush=True))


def main(
    arguments: Sequence[str] | None = None, device: Device | None = None, sizes: Sizes = Sizes()
) -> dict[str, Any]:
    """device: another than the first GPU, for tests. Exits with 1 where the card computes something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write JSON here, and Markdown beside it")
    parser.add_argument("--check", action="store_true", help="only see whether the card computes what the CPU does")
    parser.add_argument("--anyway", action="store_true", help="take times even where it does not")
    options = parser.parse_args(arguments)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    if device is None:
        device = first_gpu()
    found: dict[str, Any] = {"environment": environment(device)}

    def keep() -> None:
        if options.out:
            options.out.write_text(json.dumps(found, indent=1, default=str) + "\n")
            options.out.with_suffix(".md").write_text(markdown(found))

    begun = time.monotonic()
    found["check"] = check(device, sizes)
    keep()
    wrong = gpu_check.wrong_ones(found["check"])
    seconds = time.monotonic() - begun
    print(f"{len(found['check']) - len(wrong)} of {len(found['check'])} are right, in {seconds:.0f} s.\n", flush=True)
    if wrong:
        print("\n".join(f"  {name}: {verdict}" for name, verdict in wrong.items()))
        if not options.anyway:
            sys.exit(
                f"{device.name} does not compute what the CPU does: nothing is timed. --anyway takes times even so."
            )
    if options.check:
        return found

    ops = QuickOps(device)
    model: list[Decoder] = []

    def measure(name: str, cap: float, work: Callable[[Section], None]) -> None:
        section = Section(name, cap * sizes.patience)
        try:
            work(section)
        except Exception as error:
            section.results["failed"] = "".join(traceback.format_exception_only(error)).strip()
            traceback.print_exc()
        section.results["seconds"] = time.monotonic() - section.started
        found[name] = section.results
        print(f"{name}: {section.results['seconds']:.0f} s", flush=True)
        keep()

    def load(section: Section) -> None:
        model.append(models.load(SyntheticCheckpoint(sizes.model), ops, force=True))
        section.results["weights, GB"] = model_bytes(model[0]) / GB

    singles = [(1, context) for context in sizes.contexts]
    batches = [(batch, sizes.contexts[min(1, len(sizes.contexts) - 1)]) for batch in sizes.batches]
    measure("limits", 30, lambda section: limits(section, ops, sizes))
    measure("kernels", 120, lambda section: kernels(section, ops, sizes))
    measure("load", 60, load)
    measure("decode", 45, lambda section: decoding(section, model[0], singles, sizes))
    measure("batches", 75, lambda section: decoding(section, model[0], batches, sizes))
    measure("sampled", 20, lambda section: sampled(section, model[0], sizes))
    measure("prompts", 60, lambda section: prompts(section, model[0], sizes))
    model.clear()  # its memory is the peers' now
    gc.collect()
    device.trim()
    measure("peers", 150, lambda section: peers(section, sizes))
    print("\n" + markdown(found))
    return found


def first_gpu() -> Device:
    from bitnet.backends.cuda.driver import DriverGPU

    try:
        return DriverGPU()
    except BitNetError as error:
        sys.exit(f"{error}\n{error.hint or ''}")


if __name__ == "__main__":
    main()
