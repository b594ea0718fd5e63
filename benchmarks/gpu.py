"""Measures the GPU backend: python benchmarks/gpu.py --out gpu.json

Environment and limits of the card, correctness of the products against integers of NumPy's, kernels, a model with
random weights (decode, batches, prompts), and transformers beside it where that is installed. Every section has its own
cap; the whole stays under ten minutes. A section that fails says so, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from bitnet import models
from bitnet.backends.base import BLOCK_SIZE, Step
from bitnet.backends.cuda import CUDA, tiles
from bitnet.backends.cuda.device import Array, Device
from bitnet.backends.cuda.weights import TernaryMatrix
from bitnet.models import Decoder
from bitnet.models.decoder import projection_shapes
from bitnet.models.synthetic import SyntheticCheckpoint
from bitnet.quant.random import RandomTernary
from bitnet.quant.tensor import Tensor, TernaryTensor

GB = 1e9
PACKAGES = ("numpy", "triton", "cuda-bindings", "nvidia-cuda-nvrtc", "torch", "transformers")
# Every way to lay four codes of {0, 1, 2} into a byte.
BYTES = np.array([a | b << 2 | c << 4 | d << 6 for a in range(3) for b in range(3) for c in range(3) for d in range(3)])


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    model: str = "2B-4T"
    rows: tuple[int, ...] = (1, 2, 3, 8, 9, 16, 64, 257)
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
        "gpu": device.name,
        "compute capability": device.arch / 10,
        "multiprocessors": device.processors,
        "second cache, bytes": device.cache_bytes,
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
    section.results["bf16 product, TFLOP/s"] = bf16_product(sizes.square)


def bf16_product(size: int) -> float | str:
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(10):
        a @ b
    last.record()
    torch.cuda.synchronize()
    return 10 * 2 * size**3 / (first.elapsed_time(last) / 1e3) / 1e12


def shapes_of(model: str) -> list[tuple[str, int, int]]:
    """The four products of a layer: (name, outputs, inputs)."""
    _, config, _ = models.open_model(SyntheticCheckpoint(model))
    shape = projection_shapes(config)
    qkv = sum(shape[f"self_attn.{name}_proj"][0] for name in "qkv")
    names = {"o": "self_attn.o_proj", "down": "mlp.down_proj"}
    found = [("qkv", qkv, config.hidden_size), ("gate_up", 2 * config.intermediate_size, config.hidden_size)]
    return found + [(name, *shape[full]) for name, full in names.items()]


def correctness(section: Section, ops: CUDA, sizes: Sizes) -> None:
    """Products of whole numbers, equal to NumPy's: the worst of every kind of kernel would be 0."""
    random = np.random.default_rng(0)
    for name, n, k in section.each(shapes_of(sizes.model)):
        codes = random.integers(-1, 2, (n, k), np.int8)
        weight = ops.put(TernaryTensor(codes, np.ones((), np.float32)))
        for rows in sizes.rows:
            x = random.integers(-127, 128, (rows, k)).astype(np.float32)
            x[:, -1] = 127
            poison(ops.device, rows * n)
            ours = ops.to_host(ops.linear(ops.device.put(x), weight)[0])
            some = random.choice(n, min(n, 512), replace=False)  # outputs: NumPy takes its time
            exact = x.astype(np.int64) @ codes[some].T.astype(np.int64)
            wrong = int((ours[:, some] != exact).sum())
            section.results[f"{name} {rows}"] = "exact" if not wrong else f"{wrong} of {exact.size} are wrong"


def poison(device: Device, count: int) -> None:
    """The piece of memory that the next product will probably be given."""
    device.empty((count,)).write(np.full(count, np.nan, np.float32))


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


def decoding(section: Section, model: Decoder, cases: Sequence[tuple[int, int]], sizes: Sizes) -> None:
    """cases: sequences and context. What is in the cache does not matter to the speed: it is zeros."""
    ops, c = model.ops, model.config
    assert isinstance(ops, CUDA)
    for batch, context in section.each(cases):
        blocks = tiles.count(context, BLOCK_SIZE)
        cache = ops.new_cache(c.num_hidden_layers, batch * blocks, c.num_key_value_heads, c.head_dim, "f16")
        run, step = ops.compile(model, cache), decode_step(batch, context - 1, blocks)
        run(step)
        run(step)
        graph = next(iter(run._graphs.values()))  # type: ignore[attr-defined]
        assert graph._replay is not None
        device = median(ops.device, graph._replay, sizes.repeats)
        begun = time.perf_counter()
        for _ in range(sizes.repeats):
            run(step)
        whole = (time.perf_counter() - begun) / sizes.repeats
        read = model_bytes(model) + 2 * batch * context * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 2
        section.results[f"batch {batch} context {context}"] = {
            "tok/s on the device": batch / device,
            "tok/s with the host": batch / whole,
            "GB/s": read / device / GB,
        }


def model_bytes(model: Decoder) -> int:
    """What a step reads of the weights; an embedding that is no head is read a row at a time."""
    tied = model.weights["lm_head"] is model.weights["embed_tokens"]
    kept = {id(w): w for name, w in model.weights.items() if tied or name != "embed_tokens"}
    return sum(getattr(weight, "nbytes", 0) for weight in kept.values())


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
        section.results[f"{length} tokens"] = {"tok/s": length / float(np.median(times))}


def transformers_beside(section: Section, sizes: Sizes) -> None:
    """A dense bfloat16 decoder of the same shape, eagerly and with a static cache and graphs; and its own BitNet."""
    import torch
    import transformers

    if not torch.cuda.is_available():
        section.results["left out"] = "torch sees no GPU"
        return
    _, c, _ = models.open_model(SyntheticCheckpoint(sizes.model))
    shape = {
        name: getattr(c, name)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    }
    config = transformers.BitNetConfig(**shape, num_key_value_heads=c.num_key_value_heads, max_position_embeddings=4096)
    ids = torch.ones((1, 64), dtype=torch.long, device="cuda")
    # The one that is compiled last: it takes longest, and is the likeliest to fail.
    for kind in section.each(("dense, eager", "BitNet, eager", "dense, static cache and graphs")):
        try:
            section.results[kind] = {"tok/s": generating(config, kind, ids)}
        except Exception as error:
            section.results[kind] = "".join(traceback.format_exception_only(error)).strip()
        torch.cuda.empty_cache()


def generating(config: Any, kind: str, ids: Any) -> float:
    """Tokens a second of transformers' generate, without the prompt."""
    import torch
    import transformers

    with torch.device("cuda"):
        model = transformers.BitNetForCausalLM(config).to(torch.bfloat16).eval()
    if kind.startswith("BitNet"):
        from transformers.integrations.bitnet import replace_with_bitnet_linear

        quantization = transformers.BitNetQuantConfig()
        model = replace_with_bitnet_linear(model, ["lm_head"], quantization_config=quantization).to("cuda")
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    if "static" in kind:
        options["cache_implementation"] = "static"
        model.forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def generate(count: int) -> float:
        torch.cuda.synchronize()
        begun = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, **options)
        torch.cuda.synchronize()
        return time.perf_counter() - begun

    with torch.inference_mode():
        for count in (72, 8, 72, 8):  # a static cache of either length is compiled for, and the graphs are captured
            generate(count)
        return 64 / (min(generate(72) for _ in range(2)) - min(generate(8) for _ in range(2)))


def table(found: dict[str, Any]) -> str:
    lines = []
    for section, results in found.items():
        lines.append(section)
        for name, value in results.items():
            values = value if isinstance(value, dict) else {"": value}
            shown = "  ".join(f"{number(each)} {unit}".rstrip() for unit, each in values.items())
            lines.append(f"  {name:<34} {shown}")
    return "\n".join(lines)


def number(value: Any) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def main(
    arguments: Sequence[str] | None = None, device: Device | None = None, sizes: Sizes = Sizes()
) -> dict[str, Any]:
    """device: another than the first GPU, for tests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write JSON")
    options = parser.parse_args(arguments)
    if device is None:
        from bitnet.backends.cuda.driver import DriverGPU

        device = DriverGPU()
    ops = QuickOps(device)
    found: dict[str, Any] = {"environment": environment(device)}
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
        if options.out:
            options.out.write_text(json.dumps(found, indent=1, default=str))

    def load(section: Section) -> None:
        model.append(models.load(SyntheticCheckpoint(sizes.model), ops, force=True))
        section.results["weights, GB"] = model_bytes(model[0]) / GB

    singles = [(1, context) for context in sizes.contexts]
    batches = [(batch, sizes.contexts[min(1, len(sizes.contexts) - 1)]) for batch in sizes.batches]
    measure("limits", 30, lambda section: limits(section, ops, sizes))
    measure("correctness", 90, lambda section: correctness(section, ops, sizes))
    measure("kernels", 120, lambda section: kernels(section, ops, sizes))
    measure("load", 60, load)
    measure("decode", 45, lambda section: decoding(section, model[0], singles, sizes))
    measure("batches", 75, lambda section: decoding(section, model[0], batches, sizes))
    measure("prompts", 60, lambda section: prompts(section, model[0], sizes))
    measure("transformers", 100, lambda section: transformers_beside(section, sizes))
    print(table(found))
    return found


if __name__ == "__main__":
    main()
