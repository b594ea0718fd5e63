"""Hugging Face folders: config.json beside *.safetensors, in one file or in shards, plain or with packed weights.

Only JSON and safetensors are read. Pickles are refused, and the code that `auto_map` names is never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, ShapeError, UnsupportedError
from bitnet.formats import trits
from bitnet.formats.bounded_json import parse_object
from bitnet.formats.checkpoint import Checkpoint, TensorInfo
from bitnet.formats.safetensors_file import Entry, SafetensorsFile
from bitnet.formats.source import read_file
from bitnet.quant.stored import StoredTensor
from bitnet.quant.tensor import DenseTensor, Tensor, TernaryTensor

INDEX = "model.safetensors.index.json"
MAX_JSON = 64 << 20  # bytes of config.json or of the index
_SCALE = "_scale"  # X.weight holds codes where X.weight_scale exists beside it


def open(folder: Path, only: str = "") -> HuggingFaceCheckpoint:
    """Open a folder. only: read the weights of this one file, unless the index lists it as a shard."""
    config = read_json(folder / "config.json")
    names, index = _shards(folder, only)
    files: list[SafetensorsFile] = []
    try:
        for name in names:
            files.append(SafetensorsFile(_shard(folder, name)))
        return HuggingFaceCheckpoint(folder, config, files, index)
    except BaseException:
        for file in files:
            file.close()
        raise


class HuggingFaceCheckpoint(Checkpoint):
    """A folder. A weight and its scale (`X.weight` and `X.weight_scale`) are one ternary tensor named `X.weight`.

    Master weights (bf16, f16, no scale) come back dense, whatever `quantization_mode` says: ternarising them is the
    model's task.
    """

    kind = "hf"

    def __init__(
        self, folder: Path, config: Mapping[str, Any], files: Iterable[SafetensorsFile], index: Mapping[str, str]
    ) -> None:
        self.path = folder
        self.metadata = MappingProxyType(dict(config))
        self.architecture = _model_type(folder, config)
        self._multiply = _scale_multiplies(folder, config)
        self._files = list(files)
        self._home = _home(self._files)
        _check_index(folder, self._home, index)
        self._tensors = {
            name: self._info(file.entries[name])
            for name, file in self._home.items()
            if not (name.endswith(_SCALE) and self._has_scale(name.removesuffix(_SCALE)))
        }

    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> Tensor:
        if name not in self._home:
            raise ShapeError(f"{self.path} has no tensor {name}.")
        file = self._home[name]
        data, dtype = file.read(name), file.entries[name].dtype
        if not self._has_scale(name):
            return DenseTensor(data, dtype)
        scale = self._weight_scale(name + _SCALE)
        try:
            codes = trits.unpack_rows(data) if dtype == "U8" else _codes(DenseTensor(data, dtype))
            return TernaryTensor(codes, scale)
        except FormatError as error:
            raise FormatError(f"{file.path}: {name} {error.message}", error.hint) from error

    def row_step(self, name: str) -> int:
        return 1

    def read_rows(self, name: str, rows: slice) -> Tensor:
        info, file = self._tensors[name], self._home[name]
        if len(info.shape) != 2:
            return super().read_rows(name, rows)
        first, last, _ = rows.indices(info.shape[0])
        dtype = file.entries[name].dtype
        if not self._has_scale(name):
            return DenseTensor(file.read_rows(name, first, last), dtype)
        scale = self._weight_scale(name + _SCALE)
        try:
            if dtype == "U8":
                return TernaryTensor(self._packed_rows(name, first, last), scale)
            return TernaryTensor(_codes(DenseTensor(file.read_rows(name, first, last), dtype)), scale)
        except FormatError as error:
            raise FormatError(f"{file.path}: {name} {error.message}", error.hint) from error

    def _packed_rows(self, name: str, first: int, last: int) -> NDArray[np.int8]:
        """Row r + i n / 4 is in the bits 2i, 2i + 1 of the bytes of row r."""
        file, parts = self._home[name], []
        quarter = file.entries[name].shape[0]
        while first < last:
            i, row = divmod(first, quarter)
            count = min(last - first, quarter - row)
            parts.append(trits.unpack_quarter(file.read_rows(name, row, row + count), i))
            first += count
        return np.concatenate(parts)

    def stored(self, name: str) -> StoredTensor | None:
        info, file = self._tensors[name], self._home[name]
        if len(info.shape) != 2:
            return None
        scale = float(self._weight_scale(name + _SCALE)) if info.dtype == "packed" else None
        if scale is not None and file.entries[name].dtype != "U8":
            return None
        n, k = info.shape
        return StoredTensor(
            file.fileno(), file.entries[name].start, file.entries[name].nbytes, info.dtype, (n, k), scale
        )

    def close(self) -> None:
        for file in self._files:
            file.close()

    def _has_scale(self, name: str) -> bool:
        return name + _SCALE in self._home and name in self._home and len(self._home[name].entries[name].shape) == 2

    def _info(self, entry: Entry) -> TensorInfo:
        if not self._has_scale(entry.name):
            return TensorInfo(entry.name, entry.shape, entry.dtype, entry.nbytes)
        scale = self._home[entry.name + _SCALE].entries[entry.name + _SCALE]
        rows, k = entry.shape
        return TensorInfo(
            entry.name, (4 * rows if entry.dtype == "U8" else rows, k), "packed", entry.nbytes + scale.nbytes
        )

    def _weight_scale(self, name: str) -> NDArray[np.float32]:
        """The number to multiply the codes with, shape ()."""
        file = self._home[name]
        stored = DenseTensor(np.atleast_1d(file.read(name)), file.entries[name].dtype).dequantize()
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # of 1 / 1e-40 comes no number
            scale = stored if self._multiply else np.float32(1) / stored
        if stored.size != 1 or not (np.isfinite(scale) & (scale > 0)).all():
            raise FormatError(f"{file.path}: {name} is {stored.reshape(-1)[:4]}; one positive number was expected.")
        return np.asarray(scale.reshape(()), np.float32)


def _codes(tensor: DenseTensor) -> NDArray[np.int8]:
    """The codes of a weight that was saved unpacked beside its weight_scale, as floats -1, 0 and 1."""
    values = tensor.dequantize()
    if not ((values == 0) | (np.abs(values) == 1)).all():
        raise FormatError("has a weight_scale and values other than -1, 0 and 1.")
    return values.astype(np.int8)


def _model_type(folder: Path, config: Mapping[str, Any]) -> str:
    found = config.get("model_type")
    if not isinstance(found, str) or not found:
        raise FormatError(f"{folder / 'config.json'}: model_type is {found!r:.100}; a name was expected.")
    return found


def _scale_multiplies(folder: Path, config: Mapping[str, Any]) -> bool:
    """AutoBitLinear multiplies its output by weight_scale, BitLinear divides (transformers/integrations/bitnet.py)."""
    quantization = config.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        raise FormatError(
            f"{folder / 'config.json'}: quantization_config is {quantization!r:.100}; an object was expected."
        )
    if "quant_method" not in quantization and ("bits" in quantization or "quantization" in config):
        raise UnsupportedError(
            f"{folder} is quantised by MLX ({quantization or config['quantization']!r:.80}), which is not supported.",
            "Take the model's GGUF file or its unpacked safetensors.",
        )
    method, linear_class = quantization.get("quant_method", "bitnet"), quantization.get("linear_class", "bitlinear")
    if method != "bitnet" or linear_class not in ("bitlinear", "autobitlinear"):
        raise UnsupportedError(
            f"{folder} is quantised with {method!r:.50} ({linear_class!r:.50}); "
            f"bitnet (bitlinear, autobitlinear) is supported."
        )
    return bool(linear_class == "autobitlinear")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; FormatError for anything else, and for a file of unreasonable size."""
    return parse_object(read_file(path, MAX_JSON), str(path))


def _shards(folder: Path, only: str) -> tuple[list[str], Mapping[str, str]]:
    """The files that hold the weights, and the index where there is one: tensor name -> file name."""
    index: Any = read_json(folder / INDEX).get("weight_map") if (folder / INDEX).exists() else {}
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise FormatError(f"{folder / INDEX}: weight_map is not an object of file names.")
    if index and (not only or only in index.values()):
        return sorted(set(index.values())), index
    if only or (folder / "model.safetensors").exists():
        return [only or "model.safetensors"], {}
    return sorted(path.name for path in folder.glob("*.safetensors")), {}


def _shard(folder: Path, name: str) -> Path:
    """A shard lies in the folder itself (as a file or, in a hub cache, as a link)."""
    if not name.endswith(".safetensors") or "/" in name or "\\" in name or "\0" in name:
        raise FormatError(
            f"{folder / INDEX} names the shard {name!r:.100}; a *.safetensors file of the folder was expected."
        )
    if not (folder / name).exists():
        raise FormatError(f"{folder} lacks the shard {name}, which {INDEX} lists.", "Download the folder again.")
    return folder / name


def _home(files: list[SafetensorsFile]) -> dict[str, SafetensorsFile]:
    """The file of every tensor."""
    found: dict[str, SafetensorsFile] = {}
    for file in files:
        for name in file.entries:
            if name in found:
                raise FormatError(f"{name} is in {found[name].path.name} and in {file.path.name}; one was expected.")
            found[name] = file
    return found


def _check_index(folder: Path, home: Mapping[str, SafetensorsFile], index: Mapping[str, str]) -> None:
    for name, file in index.items():
        if name not in home or home[name].path.name != file:
            raise FormatError(
                f"{folder}: {name} is not in {file}, where {INDEX} says it is.", "Download the folder again."
            )
