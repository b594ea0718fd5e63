"""Any checkpoint to a Hugging Face folder with packed ternary weights, as transformers' BitNet integration reads it.

X.weight holds four rows in each byte, X.weight_scale the number to multiply with ("autobitlinear").
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.convert.config_json import config_json
from bitnet.convert.gguf import rotated_heads, table_types
from bitnet.convert.losses import PLAIN, Losses, exact
from bitnet.convert.source import Rounding, Source
from bitnet.errors import ParameterError, UnsupportedError
from bitnet.formats import Checkpoint
from bitnet.formats.ahead import in_order
from bitnet.formats.atomic import replacing_folder
from bitnet.formats.floats import encode_plain
from bitnet.formats.gguf_writer import Block
from bitnet.formats.safetensors_writer import SHARD, PlainSpec, write_safetensors
from bitnet.models.load import Progress
from bitnet.models.names import spellings
from bitnet.models.pooling import said_pooling
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor
from bitnet.tokenizer import Tokenizer

# What a folder holds beside the weights and config.json, and is copied as it is.
BESIDE = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json", "modules.json",
    "config_sentence_transformers.json", "sentence_bert_config.json", "1_Pooling/config.json", "LICENSE", "README.md",
)  # fmt: skip
Bytes = NDArray[np.uint8]


def write_folder(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    embeddings: str | None = None,
    head: str | None = None,
    tokenizer: Tokenizer | None = None,
    rounding: Rounding | None = None,
    progress: Progress = lambda done, total: None,
    shard: int = SHARD,
) -> Losses:
    """Write `checkpoint` as the folder `path`; returns what could not be kept exactly. See write_checkpoint.

    embeddings, head: "f32", "f16" or "bf16"; None keeps the stored type, and makes float32 of quantised ones.
    """
    for name, value in (("embeddings", embeddings), ("head", head)):
        if value is not None and value.upper() not in PLAIN:
            raise ParameterError(f"{name} is {value!r}; a safetensors file holds f32, f16 or bf16.")
    source, losses = Source(checkpoint, rounding), Losses()
    if source.rotations:
        raise UnsupportedError(
            f"{checkpoint.path}: its weights are rotated, and transformers would not know.", "Write a GGUF file."
        )
    tables = table_types(source, embeddings, head)
    specs: list[PlainSpec] = []
    for name in source.found:
        specs += tensor_specs(source, name, tables, losses)
    path = Path(path)
    table = next(spec.dtype for spec in specs if spec.name == spelled("embed_tokens"))
    with replacing_folder(path, sum(spec.nbytes for spec in specs)) as folder:
        write_json(folder / "config.json", config_json(source, table))
        if tokenizer is None and checkpoint.kind == "hf":
            copy_beside(checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent, folder)
        else:
            for name, value in (tokenizer or Tokenizer.from_checkpoint(checkpoint)).to_folder().items():
                write_json(folder / name, value)
            write_pooling(folder, said_pooling(checkpoint), source.config.hidden_size)
        write_safetensors(folder, specs, progress, shard)
    return losses


def spelled(name: str) -> str:
    """As transformers spells it; the norm before a projection is its BitLinear's `rms_norm`."""
    return spellings(name.replace("_proj.norm", "_proj.rms_norm"), "hf")[0]


def tensor_specs(source: Source, name: str, tables: Mapping[str, str], losses: Losses) -> list[PlainSpec]:
    shape, config = source.shape(name), source.config
    if len(shape) == 1:
        return [vector_spec(source, name, losses)]
    heads = rotated_heads(name, config) if config.rope_style == "interleaved" else 0
    blocks = partial(source.blocks, name, 1, heads, apart=True)
    if name in source.ternary and name.endswith("_proj"):
        if shape[0] % 4:
            raise UnsupportedError(
                f"{source.checkpoint.path}: {source.found[name]} has {shape[0]} rows; 4 share a byte."
            )
        scale: list[NDArray[np.float32]] = []
        watched = losses.watch(source.found[name], source.dtype(name), "packed")
        weight = PlainSpec(
            spelled(name), (shape[0] // 4, shape[1]), "U8", partial(packed, source, name, blocks, watched, scale)
        )
        # Its value is known when the codes have been written, just before.
        return [weight, PlainSpec(f"{spelled(name)}_scale", (1,), "F32", lambda: [scale[0].reshape(1).view(np.uint8)])]
    stored = source.dtype(name)
    dtype = tables.get(name, stored if stored in PLAIN else "F32")
    watched = losses.watch(source.found[name], stored, dtype)
    return [PlainSpec(spelled(name), shape, dtype, partial(dense, blocks, watched, dtype))]


def vector_spec(source: Source, name: str, losses: Losses) -> PlainSpec:
    """A norm, in the type of the embedding where that holds it."""
    vector = source.vector(name)
    if source.model == "gemma3" and not name.endswith("_proj.norm"):  # whose folders hold w - 1
        less = vector.dequantize() - np.float32(1)
        if not np.array_equal(less + np.float32(1), vector.dequantize()):
            losses.tables[source.found[name]] = "w to w - 1"
        vector = DenseTensor(less)
    stored = source.dtype("embed_tokens")
    dtype = stored if stored in PLAIN and exact(vector, stored) else "F32"
    return PlainSpec(spelled(name), vector.shape, dtype, lambda: [encode_plain(vector, dtype)])


def dense(blocks: Callable[[], Iterator[Block]], watched: Callable[[Block], Tensor], dtype: str) -> Iterator[Bytes]:
    return in_order(partial(lambda block: encode_plain(watched(block), dtype), block) for block in blocks())


def packed(
    source: Source,
    name: str,
    blocks: Callable[[], Iterator[Block]],
    watched: Callable[[Block], Tensor],
    scale: list[NDArray[np.float32]],
) -> list[Bytes]:
    """The codes, four rows a byte; `scale` gets the tensor's scale."""
    (n, k), first = source.shape(name), 0
    data = np.zeros((n // 4, k), np.uint8)
    scales: dict[float, bool] = {}
    for tensor in in_order(partial(watched, block) for block in blocks()):
        if not isinstance(tensor, TernaryTensor) or tensor.scales.shape != ():
            raise ParameterError(
                f"{source.found[name]} has a scale for each row or group of columns; transformers takes one a tensor.",
                "Write a GGUF file of type q2_0, pq2_0, tq2_0 or tq1_0, where the groups fit.",
            )
        add_codes(data, tensor.codes, first)
        first += len(tensor.codes)
        if tensor.codes.any():
            scales[float(tensor.scales)] = True
    if len(scales) > 1:
        raise ParameterError(
            f"{source.found[name]} has a scale for each row; transformers takes one for the tensor.",
            "Write a GGUF file of type q2_0, tq2_0 or tq1_0.",
        )
    if any(not value > 0 for value in scales):
        raise ParameterError(
            f"{source.found[name]} has the scale {next(iter(scales))}; only positive ones are written."
        )
    scale[:] = [np.asarray(next(iter(scales), 1.0), np.float32)]
    return [data.reshape(-1)]


def add_codes(data: Bytes, codes: NDArray[np.int8], first: int) -> None:
    """Put rows, from row `first` on, where they belong: row r + i n / 4 into the bits 2i, 2i + 1 of row r."""
    quarter, done = len(data), 0
    while done < len(codes):
        i, row = divmod(first + done, quarter)
        count = min(len(codes) - done, quarter - row)
        part = (codes[done : done + count] + np.int8(1)).view(np.uint8)
        data[row : row + count] |= part << np.uint8(2 * i)
        done += count


def copy_beside(source: Path, folder: Path) -> None:
    for name in BESIDE:
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def write_pooling(folder: Path, pooling: str, hidden_size: int) -> None:
    names = {"last": "pooling_mode_lasttoken", "mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}
    if pooling in names:
        (folder / "1_Pooling").mkdir()
        modes = {mode: mode == names[pooling] for mode in names.values()}
        write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **modes})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
