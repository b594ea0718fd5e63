"""How a model would run here: what it needs of the memory, and which settings it would get."""

from __future__ import annotations

import sys
from dataclasses import asdict
from math import prod
from typing import Any

from bitnet import tune
from bitnet.backends.base import BLOCK_SIZE
from bitnet.backends.cpu import CPU
from bitnet.engine import EngineConfig
from bitnet.engine.cache_size import block_bytes, fitted
from bitnet.errors import ResourceError
from bitnet.formats import Checkpoint
from bitnet.models import open_model
from bitnet.models.load import resolve, ternary_names
from bitnet.models.memory import resident_bytes


def prospects(checkpoint: Checkpoint, available: int | None) -> dict[str, Any]:
    """Bytes, tokens and settings, as JSON has them; reads no weights. available: bytes of memory."""
    _, config, shapes = open_model(checkpoint)
    names, infos = resolve(checkpoint, shapes), checkpoint.tensors()
    ternary = ternary_names(checkpoint, names)
    engine, found = EngineConfig(), tune.find(checkpoint)
    ops = CPU(found.options.packing)
    weights = sum(resident_bytes(infos[spelled], False) for name, spelled in names.items() if name not in ternary)
    room = sys.maxsize if available is None else available - weights
    bits = ops.settle(sum(prod(infos[names[name]].shape) for name in ternary), room)
    weights += sum(resident_bytes(infos[names[name]], True, bits) for name in ternary)
    context = min(engine.ctx_size, config.max_position_embeddings)
    each = block_bytes(config, engine.kv)
    left = None if available is None else max(0, available - weights)
    return {
        "path": str(checkpoint.path),
        "weight_bytes": weights,
        "weights": ops.packing,
        "cache_bytes_per_token": each // BLOCK_SIZE,
        "fits": left is None or weights < (available or 0),
        "ctx_size": context,
        "contexts_at_once": None if left is None else contexts(engine, config, context, left),
        "options": asdict(found.options),
        "profile": str(found.path) if found.profile else None,
        "note": found.note,
    }


def contexts(engine: EngineConfig, config: Any, context: int, free: int) -> int:
    """How many sequences can have a whole context at once, at most those that the engine runs."""
    try:
        blocks = fitted(engine, config, free).kv_blocks
    except ResourceError:
        return 0
    return blocks // -(-context // BLOCK_SIZE) if blocks else engine.max_sequences
