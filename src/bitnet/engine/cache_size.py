"""How many blocks of keys and values the memory holds."""

from __future__ import annotations

from dataclasses import replace

from bitnet.backends.base import BLOCK_SIZE, kv_vector_bytes
from bitnet.engine.llm import EngineConfig
from bitnet.errors import ResourceError
from bitnet.machine.memory import available_bytes
from bitnet.models.decoder import Config

GIB = 2**30
SHARE = 0.9  # of the free memory: the rest is for intermediate values and for others


def block_bytes(model: Config, kv: str) -> int:
    """Of keys and values of all layers at BLOCK_SIZE positions."""
    vectors = model.num_hidden_layers * 2 * model.num_key_value_heads * BLOCK_SIZE
    return vectors * kv_vector_bytes(kv, model.head_dim)


def fitted(config: EngineConfig, model: Config, free: int | None = None) -> EngineConfig:
    """`config` with a cache that fits into `free` bytes (None: those that the machine has).

    Where nobody asked for a number of blocks and not every sequence can have a whole context, there are as many blocks
    as fit: the scheduler lets sequences wait for them. Where ctx_size is 0 the context is as long as fits.
    ResourceError where not even one context fits, or not the blocks that were asked for.
    """
    free = available_bytes() if free is None else free
    if free is None:
        return config
    each, context = block_bytes(model, config.kv), config.ctx_size or model.max_position_embeddings
    context = min(context, model.max_position_embeddings)
    one, most = -(-context // BLOCK_SIZE), int(free * SHARE) // each
    wanted = config.kv_blocks or config.max_sequences * one
    if wanted <= most:
        return config
    if config.kv_blocks or (config.ctx_size and one > most):
        what = f"{wanted} blocks" if config.kv_blocks else f"a context of {context} tokens"
        least = (wanted if config.kv_blocks else one) * each
        raise ResourceError(
            f"The keys and values of {what} need {least / GIB:.2f} GiB of memory; {free / GIB:.2f} GiB are free.",
            f"Ask for a context of at most {most * BLOCK_SIZE} tokens (--ctx-size), or try all the same with --force.",
        )
    return replace(config, kv_blocks=max(1, most))
