"""How much memory a model will take, found out without reading its weights.

Nothing here knows a layout of the core: it is asked for one piece of each thing (a few rows of a weight, a block of the
cache, a step of one token and one of two), and a whole is so many pieces.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

import numpy as np

import bitnet._core as _core
from bitnet.backends.base import BLOCK_SIZE, Step
from bitnet.backends.cpu import CPU
from bitnet.engine.llm import EngineConfig
from bitnet.formats.checkpoint import Checkpoint, TensorInfo
from bitnet.formats.gguf_types import BY_NAME
from bitnet.models import Decoder, open_model
from bitnet.models.decoder import Config
from bitnet.models.load import resolve, ternary_names, wants_screen
from bitnet.models.memory import available_bytes, resident_bytes
from bitnet.models.rotation import Rotation, read_rotations
from bitnet.quant.blocks import BLOCKS
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor

ROWS = 16  # that the core keeps together
BY_ROW = ("IQ1_BN", "IQ2_BN", "IQ2_BN_R4")  # types with a scale for each row
BY_BLOCK = ("Q1_0", "Q2_0", "PQ2_0", "PTQ1_0")  # and for each block; the others mean one scale for all


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes. weights: by what they are for. cache: for all sequences; cache_per_token: of one of them.

    step: what the largest step works on: the arena between operations, quantised activations, and logits.
    """

    packing: str
    context: int
    sequences: int
    weights: dict[str, int]
    cache_per_token: int
    cache: int
    step: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.weights.values()) + self.cache + sum(self.step.values())

    def largest_context(self, available: int, longest: int) -> int:
        """Positions that every sequence could have at once, a multiple of the cache's blocks."""
        left = available - self.total + self.cache
        blocks = left // (self.cache_per_token * BLOCK_SIZE * self.sequences)
        return max(0, min(longest, blocks * BLOCK_SIZE))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


def footprint(checkpoint: Checkpoint, ops: CPU, engine: EngineConfig) -> Footprint:
    """What `checkpoint` takes on the CPU backend with this configuration, as far as the file's header tells.

    TQ1_0 and TQ2_0 have a scale for each block; it is taken that all of a tensor agree, as in every BitNet.
    """
    module, config, shapes = open_model(checkpoint)
    found, infos = resolve(checkpoint, shapes), checkpoint.tensors()
    ternary, rotations = ternary_names(checkpoint, found), read_rotations(checkpoint, found)
    dense = sum(resident_bytes(infos[spelled], False) for name, spelled in found.items() if name not in ternary)
    count = sum(prod(infos[found[name]].shape) for name in ternary)
    bits = ops.settle(count, available_bytes() - dense)
    weights: Counter[str] = Counter()
    for name, spelled in found.items():
        weights[kind(name, name in ternary, infos[spelled])] += weight_bytes(ops, infos[spelled], name in ternary)
    head = "lm_head" if "lm_head" in found else "embed_tokens"
    info = infos[found[head]]
    if ops.screens and head not in ternary and wants_screen(info, engine.head, dense + int(count * bits / 8)):
        weights["screen"] = screen_bytes(ops, info)
    weights["norms"] += sum(rotation.nbytes for rotation in rotations.values())
    context, blocks = engine.sizes(config.max_position_embeddings)
    block = cache_bytes(ops, config, engine.kv)
    return Footprint(
        packing=ops.packing,
        context=context,
        sequences=engine.max_sequences,
        weights=dict(weights),
        cache_per_token=block // BLOCK_SIZE,
        cache=block * blocks,
        step=step_bytes(outline(module, config, list(found), rotations, ops), config, engine),
    )


def kind(name: str, ternary: bool, info: TensorInfo) -> str:
    if len(info.shape) == 1:
        return "norms"
    if ternary and name.endswith("_proj"):
        return "ternary"
    return {"embed_tokens": "embedding", "lm_head": "head"}.get(name, "dense")


def weight_bytes(ops: CPU, info: TensorInfo, ternary: bool) -> int:
    """What the core makes of a tensor; the scales of rows and groups it keeps twice, as given and in its own order."""
    rows, columns = info.shape[0], info.shape[-1]
    if len(info.shape) == 1:
        return 4 * rows
    if not ternary:
        return rows * int(ops.put(sample(info, 1)).nbytes)
    groups, scales = -(-rows // ROWS), 0  # of a row
    if info.dtype in (*BY_ROW, *BY_BLOCK):
        scales = columns // BY_NAME[info.dtype].block if info.dtype in BY_BLOCK else 1
    shape = (ROWS, scales) if info.dtype in BY_BLOCK else (ROWS,) * scales
    weight = ops.put(TernaryTensor(np.zeros((ROWS, columns), np.int8), np.ones(shape, np.float32)))
    packed = int(weight.nbytes) - 4 * prod(shape)
    return groups * packed + (4 * scales * (rows + groups * ROWS) or 4)


def sample(info: TensorInfo, rows: int) -> Tensor:
    """Zeros, stored as `info` is."""
    columns = info.shape[-1]
    if info.dtype in BLOCKS:
        kind = BLOCKS[info.dtype]
        return DenseTensor(np.zeros((rows, columns // kind.weights * kind.nbytes), np.uint8), info.dtype)
    if info.dtype == "Q8_0":
        return DenseTensor(np.zeros((rows, columns), np.int8), "Q8_0", np.zeros((rows, columns // 32), np.float16))
    dtype = {"F16": np.float16, "BF16": np.uint16}.get(info.dtype, np.float32)
    return DenseTensor(np.zeros((rows, columns), dtype), info.dtype if info.dtype in ("F16", "BF16") else "F32")


def screen_bytes(ops: CPU, info: TensorInfo) -> int:
    """The same for every group of rows, and a few bytes for all."""

    def measured(groups: int) -> int:
        weight: Any = ops.put(sample(info, groups * ROWS))
        ops.add_screen(weight)
        return int(weight.screen_nbytes)

    one, two = measured(1), measured(2)
    return one + (-(-info.shape[0] // ROWS) - 1) * (two - one)


def cache_bytes(ops: CPU, config: Config, dtype: str) -> int:
    """Of one block in all layers."""
    return int(ops.new_cache(config.num_hidden_layers, 1, config.num_key_value_heads, config.head_dim, dtype).nbytes)


def outline(module: Any, config: Config, names: list[str], rotations: dict[str, Rotation], ops: CPU) -> Decoder:
    """A model whose values have the right widths: its weights are zeros, the same for all of a shape."""
    shapes = module.shapes(config)
    zeros: dict[tuple[int, ...], Any] = {}
    weights: dict[str, Any] = {}
    for name in names:
        shape = shapes[name]
        if name in ("embed_tokens", "lm_head"):
            shape = (ROWS, shape[1])
        if shape not in zeros:
            flat = len(shape) == 1
            zeros[shape] = np.ones(shape, np.float32) if flat else _core.TernaryWeight.zeros(shape[0], shape[1], "2bit")
        weights[name] = zeros[shape]
    weights.setdefault("lm_head", weights["embed_tokens"])
    for name, rotation in rotations.items():
        weights[f"{name}.rotation"] = rotation
    model: Decoder = module.Model(replace(config, vocab_size=ROWS), weights, ops)
    return model


def step_bytes(model: Decoder, config: Config, engine: EngineConfig) -> dict[str, int]:
    """Of the largest step: `chunk` tokens, and logits for every sequence, or the guesses of each."""
    ops = model.ops
    cache = ops.new_cache(config.num_hidden_layers, 1, config.num_key_value_heads, config.head_dim, engine.kv)
    plan: Any = ops.compile(model, cache)
    arenas = []
    for ids in ([0], [0, 0]):
        plan(Step.whole(ids, want=[0]))
        arenas.append(plan.arena_bytes)
    token = arenas[1] - arenas[0]
    wanted = arenas[0] - token
    tokens = max(engine.chunk, engine.max_sequences)
    widest = max(config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
    return {
        "arena": tokens * token + engine.max_sequences * wanted,
        "activations": tokens * widest,
        "logits": engine.max_sequences * config.vocab_size * 4,
    }
