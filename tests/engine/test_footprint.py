"""What is said of a model's memory before it is loaded, against what the loaded model takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

pytest.importorskip("bitnet._core")

from bitnet import BitNet, backends, formats, models
from bitnet.backends.base import Step
from bitnet.backends.cpu import CPU, weight_bytes
from bitnet.convert import write_checkpoint
from bitnet.engine import EngineConfig
from bitnet.engine.footprint import Footprint, footprint
from bitnet.formats import TensorSpec, write_gguf
from bitnet.models.synthetic import SyntheticCheckpoint
from bitnet.quant.tensor import TernaryTensor

ODD = {"hidden_size": 192, "intermediate_size": 200, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 40}


def planned(source: Any, weights: str = "auto", kernel: str = "auto", **engine: Any) -> Footprint:
    ops = backends.make("cpu", weights, kernel)
    assert isinstance(ops, CPU)
    return footprint(source, ops, EngineConfig(**engine))


def taken(source: Any, weights: str = "auto", kernel: str = "auto", head: str = "auto") -> int:
    """Bytes of the loaded weights, with what the core keeps beside them: scales of rows and groups in its own order."""
    model = models.load(source, backends.make("cpu", weights, kernel), head=head)
    again = 0
    for weight in {id(w): w for w in model.weights.values()}.values():
        scales = np.asarray(getattr(weight, "scales", 0.0)) if hasattr(weight, "packing") else np.zeros(())
        if scales.ndim:
            again += 4 * -(-len(scales) // 16) * 16 * (scales.shape[1] if scales.ndim == 2 else 1)
    return weight_bytes(model.weights) + again


@pytest.mark.parametrize("weights, kernel", [("2bit", "auto"), ("1.6bit", "auto"), ("auto", "tl1"), ("auto", "tl2")])
@pytest.mark.parametrize("config", [tiny.BITNET, tiny.BITNET | ODD, tiny.VARIANTS["llama-untied"]])
def test_the_weights_are_counted_to_the_byte(config: dict[str, Any], weights: str, kernel: str) -> None:
    source = tiny.Synthetic(config)
    found = planned(source, weights, kernel, head="screen").weights
    assert sum(found.values()) == taken(source, weights, kernel, "screen")


@pytest.mark.parametrize("dtype", ["i2_s", "tq1_0", "tq2_0"])
@pytest.mark.parametrize("embeddings", ["f32", "f16", "bf16", "q8_0", "q4_k", "q6_k"])
def test_so_they_are_in_every_type_of_a_file(tmp_path: Path, dtype: str, embeddings: str) -> None:
    path = tmp_path / "model.gguf"
    tiny.convert(tiny.Synthetic(tiny.VARIANTS["bitnet-relu2"]), path, weights=dtype, embeddings=embeddings)
    with formats.open(path) as source:
        assert sum(planned(source).weights.values()) == taken(source)


@pytest.mark.parametrize(
    "dtype, group", [("IQ2_BN", 0), ("IQ1_BN", 0), ("Q1_0", 128), ("Q2_0", 64), ("PQ2_0", 128), ("PTQ1_0", 128)]
)
def test_and_with_scales_of_rows_and_groups(tmp_path: Path, dtype: str, group: int) -> None:
    path = rescaled(tiny.convert(tiny.Synthetic(tiny.VARIANTS["llama"]), tmp_path / "plain.gguf"), dtype, group)
    with formats.open(path) as source:
        assert sum(planned(source).weights.values()) == taken(source)


def rescaled(path: Path, dtype: str, group: int) -> Path:
    """The model again, its ternary weights stored as `dtype` with a scale of its own for each group or row."""
    random, specs = np.random.default_rng(0), []
    with formats.open(path) as source:
        for info in source.tensors().values():
            tensor, stored = source.read(info.name), info.dtype
            if isinstance(tensor, TernaryTensor):
                n, k = tensor.shape
                scales = random.uniform(0.5, 1, (n, k // group) if group else n).astype(np.float16)
                codes = tensor.codes | 1 if dtype == "Q1_0" else tensor.codes
                tensor, stored = TernaryTensor(codes, scales.astype(np.float32)), dtype
            specs.append(TensorSpec.of(info.name, tensor, stored))
        write_gguf(path.with_name("rescaled.gguf"), source.metadata, specs)
    return path.with_name("rescaled.gguf")


@pytest.mark.parametrize("name", ["bitnet-relu2", "llama-untied", "llama-head-dim"])
@pytest.mark.parametrize("kv", ["f16", "f32", "int8"])
def test_cache_and_arena_are_those_of_the_engine(name: str, kv: str) -> None:
    source = tiny.Synthetic(tiny.VARIANTS[name] | {"num_hidden_layers": 5})
    found = planned(source, ctx_size=100, max_sequences=3, chunk=40, kv=kv)
    model = models.load(source, backends.make("cpu"))
    c = model.config
    cache = model.ops.new_cache(c.num_hidden_layers, 3 * 7, c.num_key_value_heads, c.head_dim, kv)
    assert found.cache == cache.nbytes and found.context == 100
    plan: Any = model.ops.compile(model, cache)
    plan(Step.whole([0] * 40, want=[0, 1, 2]))
    assert found.step["arena"] == plan.arena_bytes


def test_the_largest_context_fits_and_a_block_more_does_not(tiny_gguf: Path) -> None:
    with formats.open(tiny_gguf) as source:
        some = planned(source, ctx_size=64, max_sequences=2)
        available = some.total + 12345
        context = some.largest_context(available, 4096)
        assert planned(source, ctx_size=context, max_sequences=2).total <= available
        assert planned(source, ctx_size=context + 16, max_sequences=2).total > available
    assert some.largest_context(10**12, 4096) == 4096 and some.largest_context(0, 4096) == 0


MEASURE = """
import io
from bitnet import backends, models
from bitnet.engine import EngineConfig
from bitnet.engine.runner import Runner
from bitnet.engine.scheduler import Chunk
from bitnet.engine.sequence import Sequence
from bitnet.engine.sampling import SamplingParams
from bitnet.formats import open

def resident():
    with io.open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

backends.set_threads(1)
with open("{warm}") as checkpoint:
    models.load(checkpoint, backends.make("cpu", "2bit"))
before = resident()
with open("{path}") as checkpoint:
    model = models.load(checkpoint, backends.make("cpu", "2bit"))
runner = Runner(model, 64, "f16")
sequence = Sequence(0, [1] * 1024, SamplingParams())
sequence.blocks = [*range(64)]
for start in (0, 512):
    runner.run([Chunk(sequence, start, start + 512)])
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_grows_by_what_was_said(tmp_path: Path, tiny_gguf: Path) -> None:
    path = tmp_path / "model.gguf"
    source = SyntheticCheckpoint("100M")
    write_checkpoint(source, path, tokenizer=tiny.tokenizer())
    with formats.open(path) as checkpoint:
        said = planned(checkpoint, "2bit", ctx_size=1024, max_sequences=1).total
    script = MEASURE.format(path=path, warm=tiny_gguf)
    env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True)
    grown = int(result.stdout)
    # Every mapping takes whole pages of 2 MB, and the allocator keeps some of what loading has freed.
    assert -(1 << 20) < grown - said < 16 << 20, f"said {said:,}, grew by {grown:,}"


def test_a_model_runs_in_the_context_that_was_planned(tiny_gguf: Path) -> None:
    with formats.open(tiny_gguf) as source:
        found = planned(source, ctx_size=64, max_sequences=1)
    with BitNet(tiny_gguf, ctx_size=64, max_sequences=1) as model:
        assert model.llm.runner.cache.nbytes == found.cache and model.llm.ctx_size == found.context
